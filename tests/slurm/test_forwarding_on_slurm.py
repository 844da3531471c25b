"""Jobs on the real cluster show themselves on a tracking server while they run.

python -m pytest -m long tests/slurm/test_forwarding_on_slurm.py     (two minutes)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from lab import command, until
from tracking_servers import Server

from harness.tracking.server import connect, own_uri

pytestmark = pytest.mark.long
WORDS = ("--scale", "tiny", "--methods", "mae", "--evals", "linear")
LONG = "optimisation.epochs=200"  # longer than the ten seconds after which a job first forwards


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A tracking server with a database of its own."""
    running = Server(tmp_path)
    running.start()
    yield running
    running.stop()


def runs(uri: str) -> dict[str, Any]:
    """The server's runs of stages by their key."""
    client = connect(uri)
    experiments = [each.experiment_id for each in client.search_experiments()]
    found = client.search_runs(experiments, "tags.level = 'stage'", max_results=1000)
    by_key = {run.data.tags["key"]: run for run in found}
    assert len(by_key) == len(found)
    return by_key


def curve(uri: str, run: Any, name: str) -> list[tuple[int, float]]:
    found = connect(uri).get_metric_history(run.info.run_id, name)
    return sorted((each.step, each.value) for each in found)


def of_file(folder: Path, name: str) -> list[tuple[int, float]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line[name]) for line in lines if name in line]


def test_without_a_server_the_one_that_watches_mirrors(
    slurm_cluster: Cluster, data: Path, tmp_path: Path
) -> None:
    profile = tmp_path / "mine.toml"
    profile.write_text(
        f'backend = "slurm"\nslurm_conf = "{slurm_cluster.configuration}"\npartition = "gpu"\n'
        "cpus = 2\n"
    )
    words = ("run", *WORDS, "--cluster", profile, "--data", data, "--watch")
    watched = command(*words, cwd=tmp_path)
    assert watched.returncode == 0, watched.stderr
    found = runs(own_uri(tmp_path / "runs"))
    assert len(found) == 3 and {run.info.status for run in found.values()} == {"FINISHED"}
    again = command("sync", cwd=tmp_path)
    assert again.stdout.endswith(" 0 changes\n"), again.stdout


def test_a_running_job_is_on_the_server_and_sync_makes_all_level(
    slurm_cluster: Cluster, server: Server, data: Path, tmp_path: Path
) -> None:
    profile = tmp_path / "mine.toml"
    profile.write_text(
        f'backend = "slurm"\nslurm_conf = "{slurm_cluster.configuration}"\npartition = "gpu"\n'
        f'cpus = 2\n[environment]\nMLFLOW_TRACKING_URI = "{server.uri}"\n'
    )
    words = ("run", *WORDS, "--set", LONG, "--cluster", profile, "--data", data)
    sent = command(*words, cwd=tmp_path)
    assert sent.returncode == 0, sent.stderr
    (pretrain,) = tmp_path.glob("runs/pretrain/mae-*")
    key = pretrain.name.rpartition("-")[2]

    def live() -> list[tuple[int, float]]:
        """Points of the loss that the server has of the job while that is running."""
        run = runs(server.uri).get(key)
        seen = curve(server.uri, run, "loss") if run and run.info.status == "RUNNING" else []
        assert not (pretrain / "outcome.json").exists(), "the job ended before it was seen"
        return seen

    seen = until(live, "the running stage is on the server", seconds=600)
    assert seen == of_file(pretrain, "loss")[: len(seen)]

    def outcomes() -> list[Path]:
        return list(tmp_path.glob("runs/*/*/outcome.json"))

    until(lambda: len(outcomes()) == 3, "all stages are done", seconds=900)
    synced = command("sync", "--mlflow-uri", server.uri, cwd=tmp_path)
    assert synced.returncode == 0 and synced.stdout.startswith("MLflow is level"), synced.stdout
    on_server = runs(server.uri)
    assert len(on_server) == 3
    for path in outcomes():
        run = on_server[path.parent.name.rpartition("-")[2]]
        assert run.info.status == "FINISHED", path
        for name in ("loss", "lr", "progress"):
            assert curve(server.uri, run, name) == of_file(path.parent, name), (path, name)
    again = command("sync", "--mlflow-uri", server.uri, cwd=tmp_path)
    assert again.stdout.endswith(" 0 changes\n")
    assert not (tmp_path / "runs" / "mlflow.db").exists()
