"""What `harness run --dry-run` tells of a cluster: each job's batch arithmetic and its script."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.backends import Attempt
from harness.backends.slurm import SlurmBackend
from harness.cluster import Resources, minutes
from harness.run import Decision

UNKNOWN = "ATTEMPT"  # the attempt's id, which is drawn when it is submitted


def jobs(
    decisions: Mapping[str, Decision], backend: SlurmBackend, code: Path, test_only: bool = False
) -> Iterator[str]:
    """For every stage that would be submitted: its name, arithmetic and sbatch text.

    In the text the jobs of parents appear by the stage's name, since Slurm gives out the numbers.
    `test_only`: with Slurm's own opinion of when the job would start, dependencies aside. Raises
    BackendUnavailable.
    """
    for decision in decisions.values():
        if not decision.submit:
            continue
        stage, wants = decision.stage, backend.cluster.of(decision.stage.kind)
        needed = [decisions[each.key] for each in stage.needs.values()]
        after = [_job(each) for each in needed if each.state != "done"]
        attempt = Attempt(UNKNOWN, decision.folder, stage.kind, stage.path, after, code)
        yield f"\n==== {stage.path}: {arithmetic(stage.task, wants)}"
        if test_only:
            alone = Attempt(UNKNOWN, decision.folder, stage.kind, stage.path, (), code)
            yield f"Slurm: {backend.test_only(alone).strip()}"
        yield backend.script(attempt)


def _job(parent: Decision) -> str:
    return parent.job.job if parent.job is not None else parent.stage.name


def arithmetic(task: Any, wants: Resources) -> str:
    """`batch 4096 = 16 ranks x 2 x 128 images, 384 GPU hours until the time limit of 16 GPUs`."""
    optimisation = getattr(getattr(task, "method", task), "optimisation", None)
    batch = getattr(optimisation, "batch", None)
    words = [f"{wants.world} rank{'s' * (wants.world > 1)}"]
    if batch is not None:
        # Ranks take parts that differ by one image at most, and cut them into steps likewise.
        share = -(-batch // wants.world)
        steps = -(-share // (wants.device_batch or share))
        words = [f"batch {batch} = {words[0]} x {steps} x {-(-share // steps)} images"]
        if batch % (wants.world * steps):
            words[0] += " (not even: some take one less)"
    gpus = wants.nodes * wants.gpus
    if gpus:
        hours = gpus * minutes(wants.time) / 60
        words.append(f"{hours:g} GPU hours until the time limit of {gpus} GPU{'s' * (gpus > 1)}")
    return ", ".join(words)
