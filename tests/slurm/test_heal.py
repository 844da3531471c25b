"""The healing job on the real cluster: a broken chain mends itself, but not for ever."""

import json
from pathlib import Path

import pytest
from cluster import Cluster
from lab import command, until

WORDS = ("run", "--scale", "tiny", "--methods", "mae", "--evals", "linear")
NOT_HEALING = 'case "$SLURM_JOB_NAME" in heal/*) ;; *) '


def profile(cluster: Cluster, folder: Path, setup: str, more: str = "") -> Path:
    path = folder / "mine.toml"
    path.write_text(
        f'backend = "slurm"\nslurm_conf = "{cluster.configuration}"\npartition = "gpu"\ncpus = 1\n'
        f"setup = ['''{setup}''']\n{more}"
    )
    return path


def names(cluster: Cluster) -> list[str]:
    return cluster.call("squeue", "-h", "-o", "%j").stdout.split()


def attempts(folder: Path) -> int:
    return len(list(folder.glob("runs/*/*/attempts/*/job.json")))


def test_a_stage_that_fails_once_heals(slurm_cluster: Cluster, tmp_path: Path) -> None:
    once = tmp_path / "once"
    fails_once = f'{NOT_HEALING} mkdir "{once}" 2>/dev/null && exit 1;; esac'
    path = profile(slurm_cluster, tmp_path, fails_once, "heal = 3\n")
    sent = command(*WORDS, "--cluster", path, cwd=tmp_path)
    assert sent.returncode == 0, sent.stderr
    assert "healing job" in sent.stdout and "heal/comparison-tiny" in names(slurm_cluster)

    def done() -> bool:
        paths = list(tmp_path.glob("runs/*/*/outcome.json"))
        return len(paths) == 3 and all(
            json.loads(each.read_text())["status"] == "done" for each in paths
        )

    until(done, "all stages done", seconds=600)
    assert once.is_dir() and attempts(tmp_path) > 3
    until(lambda: not names(slurm_cluster), "no job left", seconds=600)


@pytest.mark.long
def test_what_a_limit_has_held_back_follows_by_itself(
    slurm_cluster: Cluster, tmp_path: Path
) -> None:
    path = profile(slurm_cluster, tmp_path, "true", "heal = 3\nmax_submitted = 2\n")
    sent = command(*WORDS, "--cluster", path, cwd=tmp_path)
    assert sent.returncode == 1
    assert "max_submitted = 2 of mine is reached; 2 jobs were submitted before it" in sent.stderr
    assert "; healing job " in sent.stderr and sent.stderr.count("\n") == 1
    until(lambda: len(list(tmp_path.glob("runs/*/*/outcome.json"))) == 3, "all done", seconds=600)
    until(lambda: not names(slurm_cluster), "no job left", seconds=600)
    assert attempts(tmp_path) == 3


def test_healing_has_an_end(slurm_cluster: Cluster, tmp_path: Path) -> None:
    path = profile(slurm_cluster, tmp_path, f"{NOT_HEALING} exit 1;; esac", "heal = 1\n")
    command(*WORDS, "--cluster", path, cwd=tmp_path)
    until(lambda: attempts(tmp_path) == 6, "all stages submitted again", seconds=600)
    until(lambda: not names(slurm_cluster), "no job left", seconds=600)
    assert attempts(tmp_path) == 6


def test_another_run_replaces_it_and_cancel_calls_it_off(
    slurm_cluster: Cluster, tmp_path: Path
) -> None:
    path = profile(slurm_cluster, tmp_path, "true", "heal = 1\n[sbatch]\nhold = true\n")
    for _ in range(2):
        assert command(*WORDS, "--cluster", path, cwd=tmp_path).returncode == 0
        until(lambda: len(names(slurm_cluster)) == 4, "three stages and one healing job")
    cancel = ("cancel", *WORDS[1:], "--cluster", path)
    assert "3 jobs cancelled" in command(*cancel, cwd=tmp_path).stdout
    until(lambda: not names(slurm_cluster), "no job left")
