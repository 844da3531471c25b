"""`harness ui`: the real command, on loopback, over a store that was mirrored before."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import tracking_folders as make
from tracking_servers import free_port, wait_for

from harness import tracking
from harness.store import Store


def test_the_ui_shows_the_study_of_the_store(store: Store, tmp_path: Path) -> None:
    make.write_done(store.root)
    tracking.sync(store)
    port = free_port()
    code = (
        "import sys; from pathlib import Path; from harness import tracking\n"
        "from harness.store import Store\n"
        "tracking.serve(Store(Path(sys.argv[1])), port=int(sys.argv[2]))\n"
    )
    log = (tmp_path / "ui.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(store.root), str(port)],
        cwd=tmp_path,
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
        assert process.poll() is None, (tmp_path / "ui.log").read_text()
        try:
            with urllib.request.urlopen(asked, timeout=10) as answer:
                names.extend(each["name"] for each in json.load(answer)["experiments"])
        except OSError:
            return False
        return True

    try:
        wait_for(shown, "harness ui")
    finally:
        process.terminate()
        process.wait(60)
    assert "comparison-mini" in names
    assert f"http://127.0.0.1:{port}" in (tmp_path / "ui.log").read_text()
    assert not (tmp_path / "mlruns").exists() and not (tmp_path / "mlartifacts").exists()
