"""A comparison through the command line: Slurm gives the numbers of this machine's own run.

python -m pytest -m long tests/slurm/test_comparison_on_slurm.py -k tiny     (minutes)
python -m pytest -m long tests/slurm/test_comparison_on_slurm.py -k mini     (an hour)

`make test-long` runs both, and everything else that takes long. MINI_STORE names the store of a
finished local run of the same code, which the second then need not make.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from lab import command, until
from safetensors.numpy import load_file

pytestmark = pytest.mark.long
OF_TIME = ("time", "images_per_second", "system/")


def outcomes(store: Path) -> dict[str, dict[str, float]]:
    """Stage -> its metrics, of every stage that is done."""
    found = {}
    for path in store.glob("*/*/outcome.json"):
        outcome = json.loads(path.read_text())
        assert outcome["status"] == "done", (path, outcome["error"])
        found[f"{path.parent.parent.name}/{path.parent.name}"] = outcome["metrics"]
    return found


def curve(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on time and machine."""
    path = folder / "metrics.jsonl"
    lines = map(json.loads, path.read_text().splitlines() if path.exists() else [])
    return [{name: line[name] for name in line if not name.startswith(OF_TIME)} for line in lines]


def weights(folder: Path) -> dict[str, bytes]:
    """What the stage has exported, bit for bit."""
    files = sorted(folder.glob("*.safetensors"))
    return {
        f"{path.name}: {name}": tensor.tobytes()
        for path in files
        for name, tensor in load_file(path).items()
    }


def compare(
    cluster: Cluster, scale: str, expected: Path, data: Path, folder: Path, seconds: float
) -> None:
    """Runs the comparison on the cluster, in `folder`; its numbers are those in `expected`."""
    profile = folder / "profile.toml"
    profile.write_text(
        'backend = "slurm"\npartition = "preemptible"\ntime = "4:00:00"\ncpus = 4\n'
        f'slurm_conf = "{cluster.configuration}"\n'
    )
    sent = command("run", "--scale", scale, "--cluster", profile, "--data", data, cwd=folder)
    assert sent.returncode == 0, sent.stderr
    wanted, store = outcomes(expected), folder / "runs"
    until(lambda: outcomes(store).keys() == wanted.keys(), "all stages done", seconds)
    for stage, metrics in outcomes(store).items():
        assert curve(store / stage) == curve(expected / stage), stage
        assert weights(store / stage) == weights(expected / stage), stage
        assert metrics == wanted[stage], stage


def test_the_tiny_comparison_on_slurm(
    slurm_cluster: Cluster, comparison: Path, data: Path, tmp_path: Path
) -> None:
    compare(slurm_cluster, "tiny", comparison / "runs", data, tmp_path, seconds=1800)


def test_the_mini_comparison_on_slurm(slurm_cluster: Cluster, data: Path, tmp_path: Path) -> None:
    alone, there = tmp_path / "alone", tmp_path / "there"
    there.mkdir()
    store = Path(os.environ.get("MINI_STORE", alone / "runs"))
    if not store.is_dir():
        alone.mkdir()
        done = command("run", "--scale", "mini", "--data", data, cwd=alone, seconds=7200)
        assert done.returncode == 0, done.stderr
    compare(slurm_cluster, "mini", store, data, there, seconds=7200)
