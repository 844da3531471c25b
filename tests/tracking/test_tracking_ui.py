"""`harness ui`: the real command, on loopback, over a store that it makes level first."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tracking_folders as make
from system import missing
from tracking_servers import free_port, wait_for

from harness.cli import main
from harness.store import Store

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
from browser import Browser


@contextmanager
def showing(store: Store, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """`harness ui` over the store: its address, and the names of its experiments."""
    port = free_port()
    words = ("ui", "--store", str(store.root), "--port", str(port))
    log = (folder / "ui.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "harness.cli", *words],
        cwd=folder,
        stdout=log,
        stderr=log,
    )
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search",
        data=b'{"max_results": 10}',
        headers={"Content-Type": "application/json"},
    )
    names: list[str] = []

    def shown() -> bool:
        assert process.poll() is None, (folder / "ui.log").read_text()
        try:
            with urllib.request.urlopen(asked, timeout=10) as answer:
                names.extend(each["name"] for each in json.load(answer)["experiments"])
        except OSError:
            return False
        return True

    try:
        wait_for(shown, "harness ui", 600)
        yield f"http://127.0.0.1:{port}", names
    finally:
        process.terminate()
        process.wait(60)


def test_the_ui_shows_the_study_of_the_store(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where `harness run` mirrored to a server, which is named."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cr3t@127.0.0.1:9")
    make.write_done(store.root)
    with showing(store, tmp_path) as (address, names):
        assert "comparison-mini" in names
    told = (tmp_path / "ui.log").read_text()
    assert "MLflow is level: 7 runs" in told
    assert "mirrored to http://***@127.0.0.1:9" in told and "s3cr3t" not in told
    assert address in told and re.search(r"comparison-mini: \S+/#/experiments/1/runs\?", told)
    assert not (tmp_path / "mlruns").exists() and not (tmp_path / "mlartifacts").exists()


def test_what_cannot_be_shown_is_told_in_a_line(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: str) -> str:
        with pytest.raises(SystemExit) as left:
            main(["ui", *words])
        told = capsys.readouterr().err
        assert left.value.code == 2 and told.startswith("error: ") and told.count("\n") == 1
        return told

    assert "has no study" in refused("--store", str(tmp_path / "typo"), "--port", str(free_port()))
    assert not (tmp_path / "typo").exists()
    make.write_done(store.root)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"--port {port}: Address already in use" in refused(
            "--store", str(store.root), "--port", port
        )
    assert "--port 99999" in refused("--store", str(store.root), "--port", "99999")


ROWS = "[...document.querySelectorAll('[role=row]')]"
NAMED = "each => each.innerText.includes('%s')"
CELLS = """Object.fromEntries([...document.querySelectorAll('[role=gridcell]')]
  .filter(each => each.closest('[row-id="%s"]') && each.getAttribute('col-id').includes('.`'))
  .map(each => [each.getAttribute('col-id').split('`')[1], each.innerText.trim()]))"""


@pytest.mark.long
def test_a_reader_finds_rows_results_and_a_chart_of_two_ablations(
    store: Store, tmp_path: Path
) -> None:
    """In a real Chromium: parents unfold, the result columns are filled, two rows are compared."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        missing("chromium is not installed")
    make.write_done(store.root)
    with (
        showing(store, tmp_path),
        Browser(program, tmp_path / "profile") as page,
    ):
        told = (tmp_path / "ui.log").read_text()
        page.resize(1700, 1000)
        page.call("Page.navigate", url=re.findall(r"comparison-mini: (\S+)", told)[0])
        page.wait(f"{ROWS}.some({NAMED % 'milan-depth-4-s0'})")
        page.run("document.querySelector('[aria-label=Close]')?.click()")  # the assistant's panel
        names = page.run(f"{ROWS}.map(each => each.innerText).filter(text => /-s0/.test(text))")
        assert len(names) == 2  # rows are parents; the stages are inside them
        row = page.run(f"{ROWS}.find({NAMED % 'milan-s0'}).getAttribute('row-id')")
        page.wait(f"({CELLS % row})['lin/top1'] === '61.5'")
        assert page.run(f"({CELLS % row})['cost/seconds']") == "20"

        page.run(f"{ROWS}.find({NAMED % 'milan-s0'}).querySelector('button').click()")
        page.wait(f"{ROWS}.some({NAMED % make.KEYS['linear']})")
        children = page.run(f"{ROWS}.map(each => each.innerText).join(' ')")
        assert all(make.KEYS[each] in children for each in ("teacher", "pretrain", "linear"))
        page.run(f"{ROWS}.find({NAMED % 'milan-s0'}).querySelector('button').click()")
        page.wait(f"!{ROWS}.some({NAMED % make.KEYS['linear']})")

        page.run(
            f"{ROWS}.filter({NAMED % '-s0'}).forEach(each => each.querySelector('input').click())"
        )
        compare = (
            "[...document.querySelectorAll('button')].find(e => e.innerText.trim() == 'Compare')"
        )
        page.wait(f"{compare} !== undefined")
        page.run(f"{compare}.click()")
        page.wait("document.querySelector('.js-plotly-plot svg') !== null")
        text = page.run("document.body.innerText")
        assert "Comparing 2 Runs" in text and "decoder.depth" in text
        assert "Parallel Coordinates Plot" in text  # the chart that is drawn
        page.screenshot(tmp_path / "compared.png")
        assert (tmp_path / "compared.png").stat().st_size > 20_000
