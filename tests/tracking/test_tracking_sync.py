"""`harness sync` on sqlite: level with the store, once, whoever writes and whatever was lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tracking_folders as make
from tracking_reading import curve, of_file, runs_of
from tracking_servers import counts

from harness import tracking
from harness.cli import main
from harness.store import Store
from harness.tracking.runs import OURS
from harness.tracking.server import connect, own_uri
from methods.errors import InputError


def test_a_second_sync_changes_nothing(store: Store) -> None:
    make.write_done(store.root)
    tracking.sync(store)
    before = counts(store.root / "mlflow.db")
    assert before["metrics"] > 150
    again = tracking.sync(store)
    assert (again.error, again.written) == ("", 0)
    assert counts(store.root / "mlflow.db") == before


def test_a_lost_database_is_rebuilt_from_the_store(store: Store) -> None:
    """Also by a mirror that was at work when the file was deleted, in its next pass."""
    folder = make.write_pretraining(store.root, 5)
    mirror = tracking.Mirror(store, "comparison")
    first = mirror.once()
    (store.root / "mlflow.db").unlink()
    make.write_curve(folder, 6, 9)
    make.write_outcome(folder)
    again = mirror.once()
    assert again.error == "" and again.runs == first.runs and again.written > first.written
    assert counts(store.root / "mlflow.db")["runs"] == first.runs
    assert curve(store, make.KEYS["pretrain"]) == of_file(folder)
    assert tracking.sync(store).written == 0


def test_sync_means_the_studies_that_report_would_show(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name, a file's name, a scale: each is looked up, and what is not there is said."""
    make.write_done(store.root)
    make.write_plan(store.root, scale="tiny")
    studies = store.root / "studies"
    (studies / "comparison.json").rename(studies / "comparison-tiny.json")
    make.write_plan(store.root)

    def synced(*words: str) -> tuple[int, str, set[str]]:
        with pytest.raises(SystemExit) as left:
            main(["sync", "--store", str(store.root), *words])
        told = capsys.readouterr()
        found = connect(own_uri(store.root)).search_experiments(filter_string=OURS)
        return int(left.value.code or 0), told.err, {each.name for each in found}

    code, told, names = synced("--study", "comparison", "--scale", "paper")
    assert (code, names) == (2, set()) and "mini, tiny" in told
    code, told, names = synced("--scale", "paper")
    assert (code, names) == (2, set()) and "no study of scale 'paper'" in told
    assert synced("--study", "comparison.toml", "--scale", "tiny")[::2] == (0, {"comparison-tiny"})
    assert synced("--scale", "mini")[::2] == (0, {"comparison-tiny", "comparison-mini"})


def test_a_damaged_outcome_stops_no_other_stage(store: Store) -> None:
    make.write_done(store.root)
    (make.folder_of(store.root, "pretrain4") / "outcome.json").write_text("{")
    summary = tracking.sync(store)
    assert "outcome.json" in summary.error
    assert runs_of(store)[make.KEYS["linear"]].info.status == "FINISHED"


def test_writers_take_turns(store: Store) -> None:
    """Sixteen at once in two processes, on a file that does not exist yet."""
    make.write_done(store.root)
    (store.root / "mlflow.db").unlink()
    code = (
        "import sys; from pathlib import Path; from harness import tracking\n"
        "from harness.store import Store\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "s = Store(Path(sys.argv[1]))\n"
        "with ThreadPoolExecutor(8) as pool:\n"
        "    found = list(pool.map(lambda _: tracking.sync(s), range(8)))\n"
        "sys.exit(any(each.error for each in found))\n"
    )
    command = [sys.executable, "-c", code, str(store.root)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(300) for process in processes] == [0, 0]
    assert len(runs_of(store)) == 7
    assert tracking.sync(store).written == 0


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/x", "postgresql://u:p@h/d", "sqlite:///"])
def test_other_addresses_are_refused(store: Store, uri: str) -> None:
    make.write_plan(store.root)
    with pytest.raises(InputError, match="expected http") as found:
        tracking.sync(store, uri)
    assert ":p@" not in str(found.value)


def test_a_store_without_studies_is_told_so(store: Store) -> None:
    with pytest.raises(InputError, match="harness run"):
        tracking.sync(store)
