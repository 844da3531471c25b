"""A comparison through the command line: Slurm gives the numbers of this machine's own run.

python -m pytest -m long tests/slurm/test_comparison_on_slurm.py -k tiny     (minutes)
python -m pytest -m long tests/slurm/test_comparison_on_slurm.py -k mini     (an hour)

`make test-long` runs both, and everything else that takes long.
"""

import json
from pathlib import Path

import pytest
from cluster import Cluster
from lab import command, until

pytestmark = pytest.mark.long
METRICS = ("top1", "top5", "mIoU", "zero_shot", "loss")


def outcomes(store: Path) -> dict[str, dict[str, float]]:
    """Stage -> the metrics that do not depend on time, of every stage that is done."""
    found = {}
    for path in store.glob("*/*/outcome.json"):
        outcome = json.loads(path.read_text())
        assert outcome["status"] == "done", (path, outcome["error"])
        metrics = {name: outcome["metrics"][name] for name in METRICS if name in outcome["metrics"]}
        found[f"{path.parent.parent.name}/{path.parent.name}"] = metrics
    return found


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
        assert metrics == pytest.approx(wanted[stage], rel=1e-5), stage


def test_the_tiny_comparison_on_slurm(
    slurm_cluster: Cluster, comparison: Path, data: Path, tmp_path: Path
) -> None:
    compare(slurm_cluster, "tiny", comparison / "runs", data, tmp_path, seconds=1800)


def test_the_mini_comparison_on_slurm(slurm_cluster: Cluster, data: Path, tmp_path: Path) -> None:
    alone, there = tmp_path / "alone", tmp_path / "there"
    alone.mkdir()
    there.mkdir()
    done = command("run", "--scale", "mini", "--data", data, cwd=alone, seconds=7200)
    assert done.returncode == 0, done.stderr
    compare(slurm_cluster, "mini", alone / "runs", data, there, seconds=7200)
