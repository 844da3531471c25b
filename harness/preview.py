"""What `harness run --dry-run` tells of a cluster: each job's arithmetic, cost and script."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.backends import Attempt
from harness.backends.slurm import SlurmBackend
from harness.cluster import Resources, minutes
from harness.estimate import estimated_hours
from harness.reconcile import Decision
from harness.stage import Stage

UNKNOWN = "ATTEMPT"  # the attempt's id, which is drawn when it is submitted


def jobs(
    decisions: Mapping[str, Decision], backend: SlurmBackend, code: Path, test_only: bool = False
) -> Iterator[str]:
    """For every stage that would be submitted: its name, arithmetic, cost and sbatch text.

    In the text the jobs of parents appear by the stage's name, since Slurm gives out the numbers.
    `test_only`: with Slurm's own opinion of when the job would start, dependencies aside. The last
    line adds up GPU hours and disk. Raises BackendUnavailable.
    """
    submitted = [each for each in decisions.values() if each.submit]
    for decision in submitted:
        stage, wants = decision.stage, backend.cluster.of(decision.stage.kind)
        needed = [decisions[each.key] for each in stage.needs.values()]
        after = [_job(each) for each in needed if each.state != "done"]
        attempt = Attempt(UNKNOWN, decision.folder, stage.kind, stage.path, after, code)
        words = ", ".join([arithmetic(stage.task, wants), *_cost(stage, wants)])
        yield f"\n==== {stage.path}: {words}"
        if test_only:
            alone = Attempt(UNKNOWN, decision.folder, stage.kind, stage.path, (), code)
            yield f"Slurm: {backend.test_only(alone)}"
        yield backend.script(attempt)
    if submitted:
        yield "\n" + _total([each.stage for each in submitted], backend)


def _job(parent: Decision) -> str:
    return parent.job.job if parent.job is not None else parent.stage.name


def arithmetic(task: Any, wants: Resources) -> str:
    """`batch 4096 = 16 ranks x 2 x 128 images`."""
    batch = getattr(_optimisation(task), "batch", None)
    ranks = f"{wants.world} rank{'s' * (wants.world > 1)}"
    if batch is None:
        return ranks
    # Ranks take parts that differ by one image at most, and cut them into steps likewise.
    share = -(-batch // wants.world)
    steps = -(-share // (wants.device_batch or share))
    uneven = " (not even: some take one less)" if batch % (wants.world * steps) else ""
    return f"batch {batch} = {ranks} x {steps} x {-(-share // steps)} images{uneven}"


def _optimisation(task: Any) -> Any:
    return getattr(getattr(task, "method", task), "optimisation", None)


def _cost(stage: Stage, wants: Resources) -> Iterator[str]:
    """`384 GPU hours until the time limit of 16 GPUs`, `2.7 GB on the disk`."""
    gpus = wants.nodes * wants.gpus
    if gpus:
        hours = f"{gpu_hours(wants):g} GPU hours until the time limit"
        yield f"{hours} of {gpus} GPU{'s' * (gpus > 1)}"
        estimate = estimated_hours(stage, wants)
        if estimate is not None:
            yield f"about {estimate:.0f} GPU hours of training on {wants.gpu} (projected)"
    disk = disk_bytes(stage)
    if disk is None:
        yield "checkpoints of unknown size"
    elif disk:
        yield f"{size(disk)} on the disk"


def gpu_hours(wants: Resources) -> float:
    """What one start of the job takes at most; a stage that returns to the queue starts again."""
    return wants.nodes * wants.gpus * minutes(wants.time) / 60


def disk_bytes(stage: Stage) -> int | None:
    """Of the stage's two checkpoints and its export; None where a part does not tell its size."""
    try:
        found = stage.task.state_size({role: each.task for role, each in stage.needs.items()})
    except NotImplementedError:
        return None
    return int(found.disk_bytes(_optimisation(stage.task)))


def size(count: float) -> str:
    """`1.4 GB`, `23.0 MB`, `71 kB`."""
    if count < 1e6:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _total(stages: Sequence[Stage], backend: SlurmBackend) -> str:
    """`in all 12 jobs, at most 4,608 GPU hours without requeues, 31.4 GB on the disk`."""
    words = [f"in all {len(stages)} job{'s' * (len(stages) > 1)}"]
    wanted = [backend.cluster.of(each.kind) for each in stages]
    hours = sum(map(gpu_hours, wanted))
    if hours:
        words.append(f"at most {hours:,g} GPU hours without requeues")
    projected = sum(estimated_hours(*each) or 0 for each in zip(stages, wanted, strict=True))
    if projected:
        words.append(f"about {projected:,.0f} GPU hours of pretraining (projected)")
    sizes = [disk_bytes(each) for each in stages]
    known = sum(each for each in sizes if each is not None)
    words.append(f"{size(known)} on the disk{' and more' * (None in sizes)}")
    return ", ".join(words)
