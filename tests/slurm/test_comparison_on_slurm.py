"""A comparison through the command line: Slurm gives the numbers of this machine's own run.

make test-long        or: python -m pytest -m long tests/slurm/test_comparison_on_slurm.py
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import Cluster
from lab import until

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


def test_the_tiny_comparison_on_slurm(
    slurm_cluster: Cluster, comparison: Path, data: Path, tmp_path: Path
) -> None:
    profile = tmp_path / "profile.toml"
    profile.write_text(
        'backend = "slurm"\npartition = "preemptible"\ntime = "2:00:00"\ncpus = 4\n'
        f'slurm_conf = "{slurm_cluster.configuration}"\n'
    )
    words = ["run", "--scale", "tiny", "--cluster", str(profile), "--data", str(data)]
    command = [sys.executable, "-m", "harness.cli", *words]
    sent = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert sent.returncode == 0, sent.stderr
    expected = outcomes(comparison / "runs")
    store = tmp_path / "runs"
    until(lambda: outcomes(store).keys() == expected.keys(), "all stages done", seconds=1800)
    for stage, metrics in outcomes(store).items():
        assert metrics == pytest.approx(expected[stage], rel=1e-5), stage
