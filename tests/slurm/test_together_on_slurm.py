"""Rows that share a Slurm job: known by it, put back with it, and trained as each would be alone.

python -m pytest -m long tests/slurm/test_together_on_slurm.py     (two minutes)
"""

from __future__ import annotations

from pathlib import Path

import pytest
from cluster import Cluster as DevCluster
from kill_trials import lines
from lab import command, until
from milan_rows import ROWS

from harness.backends.slurm import SlurmBackend
from harness.cluster import load_cluster
from harness.plan import make_plan
from harness.reconcile import decide, live_jobs
from harness.store import Store
from harness.study import load_scale, load_study

pytestmark = pytest.mark.long
STUDY = 'scale = "tiny"\nevals = ["knn"]\nseeds = [0]\n' + ROWS
LONG = "optimisation.epochs=60"


@pytest.mark.parametrize("tasks", [1, 2])
def test_a_job_of_three_rows(
    slurm_cluster: DevCluster, data: Path, tmp_path: Path, tasks: int
) -> None:
    """Put back once while its rows train; two ranks train alike, one to the last bit."""
    (tmp_path / "rows.toml").write_text(STUDY)
    profile = tmp_path / "mine.toml"
    profile.write_text(
        f'backend = "slurm"\nslurm_conf = "{slurm_cluster.configuration}"\npartition = "gpu"\n'
        f"cpus = 1\ncheckpoint_seconds = 2\n[resources.pretrain]\ntasks = {tasks}\n"
    )
    words = ("run", "--study", "rows.toml", "--set", LONG, "--data", data)
    sent = command(*words, "--store", "shared", "--cluster", profile, "--together", cwd=tmp_path)
    assert sent.returncode == 0, sent.stderr
    assert sent.stdout.startswith("5 jobs submitted")  # CLIP, the rows, and three evaluations

    store, backend = Store(tmp_path / "shared"), SlurmBackend(load_cluster(str(profile)))
    study = load_study(str(tmp_path / "rows.toml"))
    plan = make_plan(study, load_scale("tiny"), {"optimisation.epochs": 60})

    def training() -> set[str]:
        """The jobs of the rows, once all of them have logged updates."""
        rows = [each.stage for each in decide(store, plan, {}).values()]
        rows = [each for each in rows if each.kind == "pretrain"]
        assert not any((store.folder(each) / "outcome.json").exists() for each in rows)
        live = live_jobs(store, plan, backend)
        known = {live[each.key].job for each in rows if each.key in live}
        logged = all(len(lines(store.folder(each))) > 3 for each in rows)
        return known if logged and all(each.key in live for each in rows) else set()

    (job,) = until(training, "the rows train", seconds=600)
    slurm_cluster.call("scontrol", "requeue", job)
    until(lambda: len(list(store.root.glob("*/*/outcome.json"))) == 7, "all done", seconds=900)

    alone = command(*words, "--store", "alone", cwd=tmp_path)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    for stage in plan.stages.values():
        ours, theirs = store.folder(stage), Store(tmp_path / "alone").folder(stage)
        outcomes = [Store(each.parents[1]).outcome(each) for each in (ours, theirs)]
        assert outcomes[0] and outcomes[1] and outcomes[0].done, stage.path
        if stage.kind == "pretrain":
            assert outcomes[0].resumed == 1, stage.path
            losses = [[line["loss"] for line in lines(each)] for each in (ours, theirs)]
            assert losses[0] == pytest.approx(losses[1], rel=1e-2), stage.path
        if tasks == 1:
            assert outcomes[0].metrics == outcomes[1].metrics, stage.path
            assert lines(ours) == lines(theirs), stage.path
