"""`harness run` as processes of its own, as users start it: twice at once, and on two machines."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from kill_trials import lines

from harness.store import Store
from harness.tracking.server import connect, own_uri

STUDY = ("--scale", "tiny", "--methods", "mae", "--evals", "linear")


def start(
    folder: Path, data: Path, name: str, more: Sequence[str] = (), within: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """The command, on the store runs/ of `folder`; what it prints goes to the file `name`."""
    words = ["run", *STUDY, "--data", str(data), "--jobs", "2", *more]
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    return subprocess.Popen(
        [*within, sys.executable, "-m", "harness.cli", *words],
        cwd=folder,
        env=environment,
        stdout=(folder / name).open("wb"),
        stderr=subprocess.STDOUT,
    )


def stages_in_mlflow(store: Store) -> list[str]:
    """The key of every stage's run, once for each run."""
    client = connect(own_uri(store.root))
    experiments = [each.experiment_id for each in client.search_experiments()]
    tags = [run.data.tags for run in client.search_runs(experiments)]
    return sorted(each["key"] for each in tags if each["level"] == "stage")


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
    assert stages_in_mlflow(store) == sorted(each.name.rpartition("-")[2] for each in folders), told


def named(host: str) -> list[str]:
    """What runs a command on a machine of this name."""
    command = ["unshare", "--uts", "sh", "-c", f'hostname {host} && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"]).returncode:
        pytest.skip("the name of the machine cannot be changed here")
    return command


@pytest.mark.long
def test_a_machine_that_comes_back_with_another_name_and_time(tmp_path: Path, data: Path) -> None:
    """It fails as a whole while a stage trains; its clock had been an hour ahead."""
    profile = tmp_path / "often.toml"
    profile.write_text('backend = "local"\njobs = 2\ncheckpoint_seconds = 0.2\n')
    more = ("--set", "optimisation.epochs=40", "--cluster", str(profile))
    store = Store(tmp_path / "runs")
    first = start(tmp_path, data, "first", more, named("before"))
    limit = time.monotonic() + 300
    saved: list[Path] = []
    while not saved:
        assert first.poll() is None and time.monotonic() < limit, (tmp_path / "first").read_text()
        time.sleep(0.02)
        saved = list((store.root / "pretrain").glob("*/state/step-*.pt"))
    folder = saved[0].parents[1]
    first.kill()
    first.wait()
    for path in store.root.glob("*/*/owner.json"):  # the stages are sessions of their own
        if not (path.parent / "outcome.json").exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(json.loads(path.read_text())["pid"], signal.SIGKILL)
        os.utime(path, (time.time() + 3600, time.time() + 3600))
    assert start(tmp_path, data, "second", more, named("after")).wait(600) == 0

    assert [each["host"] for each in store.attempts(folder)] == ["before", "after"]
    outcome = store.outcome(folder)
    assert outcome is not None and outcome.done and outcome.resumed == 1
    assert [int(each["step"]) for each in lines(folder)] == list(range(2, 201, 2))  # every second
    keys = [each.name.rpartition("-")[2] for each in store.folders()]
    assert stages_in_mlflow(store) == sorted(keys)
