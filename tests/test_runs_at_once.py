"""`harness run` twice at once on one store, each a process of its own as a user starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from kill_trials import lines

from harness.store import Store
from harness.tracking.server import connect, own_uri

STUDY = ("--scale", "tiny", "--methods", "mae", "--evals", "linear")


def start(folder: Path, data: Path, name: str) -> subprocess.Popen[str]:
    words = ["run", *STUDY, "--store", str(folder / "runs"), "--data", str(data), "--jobs", "2"]
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    with (folder / name).open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "harness.cli", *words],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            text=True,
        )


def test_two_commands_share_the_stages_of_one_store(tmp_path: Path) -> None:
    """From nothing: also the data, the snapshot of the code and MLflow's database are made once."""
    both = {name: start(tmp_path, tmp_path / "data", name) for name in ("first", "second")}
    left = {name: process.wait(600) for name, process in both.items()}
    told = "\n".join(f"{name}: {(tmp_path / name).read_text()}" for name in both)
    assert set(left.values()) == {0}, told
    store = Store(tmp_path / "runs")
    folders = list(store.folders())
    assert {each.parent.name for each in folders} == {"pretrain", "linear"}
    for folder in folders:
        (attempt,) = store.attempts(folder)
        outcome = store.outcome(folder)
        assert outcome is not None and outcome.done and outcome.attempt == attempt["attempt"]
        steps = [int(each["step"]) for each in lines(folder)]
        assert steps == list(range(1, len(steps) + 1))
    client = connect(own_uri(store.root))
    experiments = [each.experiment_id for each in client.search_experiments()]
    runs = client.search_runs(experiments)
    mirrored = [run.data.tags["key"] for run in runs if run.data.tags["level"] == "stage"]
    assert sorted(mirrored) == sorted(each.name.rpartition("-")[2] for each in folders), told
    assert len(runs) == len(folders) + 2  # and the two rows, MAE and an encoder at random
