"""Every method pretrained by four ranks on two nodes has the loss curve of one process.

python -m pytest -m long tests/slurm/test_methods_on_ranks.py     (ten minutes on two idle cores)
"""

import json
from pathlib import Path

import pytest
from cluster import Cluster
from lab import command, until

import methods

pytestmark = pytest.mark.long
WORDS = ("run", "--scale", "tiny", "--evals", "knn", "--methods", ",".join(methods.names()))
# The frozen networks are made by one process here too, so that both curves have equal targets.
PROFILE = """
backend = "slurm"
partition = "gpu"
time = "2:00:00"
nodes = 2
tasks = 2
cpus = 2
[resources.teacher]
nodes = 1
tasks = 1
[resources.tokenizer]
nodes = 1
tasks = 1
[resources.knn]
nodes = 1
tasks = 1
"""


def curves(store: Path) -> dict[str, list[float]]:
    """Pretrain stage -> its losses, of those that are done."""
    found = {}
    for path in store.glob("pretrain/*/outcome.json"):
        outcome = json.loads(path.read_text())
        assert outcome["status"] == "done", (path, outcome["error"])
        lines = (path.parent / "metrics.jsonl").read_text().splitlines()
        found[path.parent.name] = [json.loads(line)["loss"] for line in lines]
    return found


@pytest.fixture(scope="module")
def both(
    slurm_cluster: Cluster, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """The curves of one process, and those of four ranks."""
    here, there = tmp_path_factory.mktemp("here"), tmp_path_factory.mktemp("there")
    alone = command(*WORDS, "--data", data, cwd=here, seconds=3600)
    assert alone.returncode == 0, alone.stderr
    expected = curves(here / "runs")
    profile = there / "ranks.toml"
    profile.write_text(f'slurm_conf = "{slurm_cluster.configuration}"\n{PROFILE}')
    sent = command(*WORDS, "--data", data, "--cluster", profile, cwd=there)
    assert sent.returncode == 0, sent.stderr
    store = there / "runs"
    until(lambda: curves(store).keys() == expected.keys(), "all pretrained", seconds=3600)
    return expected, curves(store)


@pytest.mark.parametrize("method", methods.names())
def test_four_ranks_train_as_one_process_does(
    both: tuple[dict[str, list[float]], dict[str, list[float]]], method: str
) -> None:
    (name,) = (each for each in both[0] if each.startswith(f"{method}-s0-"))
    assert len(both[0][name]) >= 5
    assert both[1][name] == pytest.approx(both[0][name], rel=1e-2)
