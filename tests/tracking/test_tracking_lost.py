"""A study that trains for real while the MLflow server that mirrors it loses its database."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kill_trials import lines
from tracking_servers import Server, counts, wait_for

from harness import tracking
from harness.store import Store
from harness.tracking.server import connect, own_uri

STUDY = ("--scale", "tiny", "--methods", "mae", "--evals", "linear")
LONG = ("--set", "optimisation.epochs=200")  # so that a server starts again meanwhile


@pytest.fixture
def own_server(tmp_path: Path, fresh_database: Path) -> Iterator[Server]:
    (tmp_path / "server").mkdir()
    shutil.copy(fresh_database, tmp_path / "server" / "mlflow.db")
    running = Server(tmp_path / "server")
    running.start()
    yield running
    running.stop()


def start(folder: Path, data: Path, uri: str) -> subprocess.Popen[bytes]:
    folder.mkdir()
    words = ["run", *STUDY, *LONG, "--data", str(data)]
    return subprocess.Popen(
        [sys.executable, "-m", "harness.cli", *words],
        cwd=folder,
        env={**os.environ, "MLFLOW_TRACKING_URI": uri},
        stdout=(folder / "printed.txt").open("wb"),
        stderr=subprocess.STDOUT,
    )


def held(store: Store, uri: str) -> dict[str, Any]:
    """What MLflow holds of each stage of the store, without what depends on the clock."""
    client = connect(uri)
    found = {}
    for run in client.search_runs([each.experiment_id for each in client.search_experiments()]):
        if run.data.tags["level"] == "stage":
            key, id = run.data.tags["key"], run.info.run_id
            assert key not in found
            curve = [(each.step, each.value) for each in client.get_metric_history(id, "loss")]
            files = sorted(each.path for each in client.list_artifacts(id))
            found[key] = (run.info.status, run.data.params, sorted(curve), files)
    return found


@pytest.mark.long
def test_a_database_lost_while_a_stage_trains(
    tmp_path: Path, own_server: Server, data: Path
) -> None:
    """Deleted under the server, which is started again on an empty one: the study ends the same."""
    undisturbed = start(tmp_path / "undisturbed", data, "")
    assert undisturbed.wait(900) == 0
    database = own_server.folder / "mlflow.db"
    empty = counts(database)
    running = start(tmp_path / "disturbed", data, own_server.uri)
    wait_for(lambda: counts(database)["metrics"] > 100, "the first values in MLflow", 600)
    stores = [Store(tmp_path / name / "runs") for name in ("undisturbed", "disturbed")]
    (trained,) = (each for each in stores[1].folders() if each.parent.name == "pretrain")
    database.unlink()
    assert stores[1].outcome(trained) is None
    own_server.stop()
    own_server.start()
    assert running.wait(900) == 0, (tmp_path / "disturbed" / "printed.txt").read_text()

    assert tracking.sync(stores[1], own_server.uri).error == ""
    assert tracking.sync(stores[1], own_server.uri).written == 0
    assert counts(database)["runs"] - empty["runs"] == 5  # three stages, two rows
    wanted = held(stores[0], own_uri(stores[0].root))
    assert len(wanted) == 3 and held(stores[1], own_server.uri) == wanted
    for folder in stores[0].folders():
        other = stores[1].find(folder.name.rpartition("-")[2])
        assert other is not None and lines(other) == lines(folder)
        for weights in folder.glob("*.safetensors"):
            assert (other / weights.name).read_bytes() == weights.read_bytes()
