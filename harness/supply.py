"""Whether a profile's loader processes keep up with its GPUs, from the bench's rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.bench.projection import GPUS
from harness.cluster import Cluster, Resources
from harness.estimate import counted, projected_rate, rows
from harness.plan import make_plan
from harness.stage import Stage
from harness.study import Scale, load_study
from harness.trial import Finding
from methods.values import to_plain

KINDS = ("pretrain", "linear", "finetune")
LOADING = "harness bench --loading --out results/bench"


def supply(scale: Scale, cluster: Cluster, folder: Path) -> Iterator[Finding]:
    """A finding for each stage of the comparison whose step and loading the bench in `folder` has.

    A GPU's demand is the projection of `harness.bench.projection`, which no run exceeds; a core's
    supply is that of the machine where `harness bench --loading` ran.
    """
    if cluster.gpus and not cluster.gpu:
        told = f"the profile's gpu is not said ({', '.join(GPUS)}): it is not known what it takes"
        yield Finding("warning", "loader", told)
    seen: set[str] = set()
    for row in make_plan(load_study("comparison"), scale).rows:
        for kind in KINDS:
            stage, wants = row.stages.get(kind), cluster.of(kind)
            if stage is None or not wants.gpus or not wants.gpu:
                continue
            found = judged(stage, wants, folder)
            if found is not None and str(found) not in seen:
                seen.add(str(found))
                yield found


def judged(stage: Stage, wants: Resources, folder: Path) -> Finding | None:
    """Whether the loader of `stage` starves a GPU of the profile, and how many CPUs would not.

    None where the bench has not counted such a step.
    """
    step, what = counted(stage, folder), f"loader of {name_of(stage)}"
    if step is None:
        return None
    rate = core_rate(stage, folder)
    if rate is None:
        return Finding("warning", what, f"no core's rate is known in {folder}; {LOADING}")
    optimisation = getattr(stage.task, "method", stage.task).optimisation
    demand = projected_rate(step, optimisation.batch, wants) / (wants.nodes * wants.gpus)
    processes = loaders(wants)
    told = (
        f"one {wants.gpu} takes at most {demand:,.0f} images a second, {processes} loader "
        f"process{'es' * (processes != 1)} give{'s' * (processes == 1)} {processes * rate:,.0f}"
    )
    if processes * rate >= demand:
        return Finding("ok", what, told)
    needed = math.ceil(demand / rate)
    enough = f"loader_workers = {needed} and cpus = {needed + 1} for each GPU would do"
    return Finding("warning", what, f"{told}: it would wait; {enough}")


def loaders(wants: Resources) -> int:
    """Loader processes that have a CPU of their own: one of the task's is for the stage itself."""
    return min(wants.loader_workers, wants.cpus - 1) if wants.cpus else wants.loader_workers


def name_of(stage: Stage) -> str:
    """The method of a pretraining, else the evaluation."""
    task: Any = stage.task
    return task.method.name if stage.kind == "pretrain" else stage.kind


def core_rate(stage: Stage, folder: Path) -> float | None:
    """Images a second of one core with the stage's augmentation; None if it was not measured."""
    task: Any = stage.task
    augmentation = to_plain(getattr(task, "method", task).augmentation)
    for row in rows(folder):
        if row.get("augmentation") == augmentation:
            return float(row["images_per_core_second"])
    return None
