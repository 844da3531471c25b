"""`harness doctor --smoke` on the real cluster: four ranks, and jobs that cannot start or end."""

from pathlib import Path

from cluster import Cluster
from lab import command


def profile(cluster: Cluster, folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(f'backend = "slurm"\nslurm_conf = "{cluster.configuration}"\n{text}\n')
    return path


def test_a_smoke_job_tells_what_its_ranks_found(slurm_cluster: Cluster, tmp_path: Path) -> None:
    text = 'partition = "gpu"\nnodes = 2\ntasks = 2\ngpus = 2\ndevice = "cpu"\ncpus = 1'
    words = ("--cluster", profile(slurm_cluster, tmp_path, text), "--scale", "tiny")
    (tmp_path / "data" / "scenes").mkdir(parents=True)
    told = command("doctor", *words, "--smoke", cwd=tmp_path).stdout
    for rank in range(4):
        node = slurm_cluster.nodes[rank // 2]
        assert f"ok       rank {rank}: {node}: CUDA_VISIBLE_DEVICES 0,1, computes on cpu" in told
    assert "ok       mine: gpu: 2 nodes of 8 CPUs, gpu:4, idle" in told
    assert "ok       a pretraining job: Job " in told
    assert "ok       all-reduce: gloo, the sum over 4 ranks is right" in told
    assert "ok       data on the node: scenes" in told
    assert "ok       checkpoint: written and read in runs" in told
    assert list((tmp_path / "runs" / "smoke").iterdir()) == []


def test_a_smoke_job_that_cannot_start_is_cancelled(slurm_cluster: Cluster, tmp_path: Path) -> None:
    path = profile(slurm_cluster, tmp_path, 'partition = "gpu"\n[sbatch]\nhold = true')
    words = ("doctor", "--cluster", path, "--scale", "tiny", "--smoke", "--wait", 3)
    done = command(*words, cwd=tmp_path)
    assert done.returncode == 1
    assert "was not done in 3 s and is cancelled (JobHeldUser)" in done.stdout
    assert slurm_cluster.call("squeue", "-h", "-o", "%i").stdout.split() == []


def test_a_smoke_job_that_slurm_refuses(slurm_cluster: Cluster, tmp_path: Path) -> None:
    path = profile(slurm_cluster, tmp_path, 'partition = "gup"')
    words = ("doctor", "--cluster", path, "--scale", "tiny", "--smoke")
    done = command(*words, cwd=tmp_path)
    assert done.returncode == 1
    assert "problem  partition gup: no such partition; there are gpu, preemptible" in done.stdout
    assert "problem  smoke: " in done.stdout
