"""The cluster that the other tests rely on: nodes, fake GPUs, and nothing left behind."""

import os
import subprocess
from pathlib import Path

from cluster import Cluster

PROJECT = Path(__file__).resolve().parents[2]


def processes_of(folder: Path) -> list[str]:
    """Command lines of processes that have the cluster's configuration in their environment."""
    mark = f"SLURM_CONF={folder}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def test_every_job_sees_its_own_fake_gpus(slurm_cluster: Cluster, tmp_path: Path) -> None:
    output = tmp_path / "gpus"
    command = f'echo "$CUDA_VISIBLE_DEVICES" > {output}'
    sent = slurm_cluster.call(
        "sbatch", "--wait", "--gpus-per-node=2", "-o/dev/null", "--wrap", command
    )
    assert sent.returncode == 0, sent.stderr
    assert len(output.read_text().split(",")) == 2


def test_too_many_gpus_are_refused_at_once(slurm_cluster: Cluster) -> None:
    sent = slurm_cluster.call("sbatch", "--gpus-per-node=5", "--wrap", "true")
    assert sent.returncode != 0
    assert "node configuration is not available" in sent.stderr


def test_up_and_down_leave_nothing_behind_beside_another_cluster(
    slurm_cluster: Cluster, tmp_path: Path
) -> None:
    folder = tmp_path / "second"
    tool = PROJECT / "slurm" / "dev"
    up = [str(tool / "up"), "--folder", str(folder), "--nodes", "1"]
    first = subprocess.run(up, capture_output=True, text=True, timeout=180, check=False)
    try:
        assert first.returncode == 0, first.stderr
        assert first.stdout.strip() == f"export SLURM_CONF={folder}/etc/slurm.conf"
        again = subprocess.run(up, capture_output=True, text=True, timeout=180, check=False)
        assert again.stdout == first.stdout
        environment = {**os.environ, "SLURM_CONF": f"{folder}/etc/slurm.conf"}
        wrap = "setsid sleep 600 & sleep 600"
        sent = subprocess.run(
            ["sbatch", "--wrap", wrap], env=environment, cwd=tmp_path, check=False
        )
        assert sent.returncode == 0
    finally:
        down = [str(tool / "down"), "--folder", str(folder)]
        subprocess.run(down, timeout=180, check=True)
    assert not folder.exists()
    assert processes_of(folder) == []
    assert slurm_cluster.call("sinfo").returncode == 0
