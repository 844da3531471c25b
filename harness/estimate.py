"""GPU hours of a training on GPUs that are not here, projected from the bench's counted steps."""

from __future__ import annotations

import functools
from dataclasses import fields
from pathlib import Path
from typing import Any

from harness.bench.projection import GPUS, Step, project
from harness.bench.table import Row, read
from harness.cluster import Resources
from harness.stage import Stage

BENCH = Path(__file__).resolve().parent.parent / "results" / "bench"
"""Where `harness bench --out results/bench` keeps its rows."""


def estimated_hours(stage: Stage, wants: Resources, folder: Path = BENCH) -> float | None:
    """GPU hours of a pretraining or VQ-KD stage on the profile's `gpu`, at best.

    The data sheet's rates times the shares that `harness.bench.projection` assumes, and no wait for
    the loader or between nodes. None for other stages, and where the profile names no GPU or the
    bench has no row of this method with this encoder.
    """
    trained = stage.kind in ("pretrain", "tokenizer") and wants.gpu and wants.gpus
    step = counted(stage, folder) if trained else None
    if step is None:
        return None
    task = getattr(stage.task, "method", stage.task)
    seen = task.optimisation.steps(stage.task.data.images("train")) * task.optimisation.batch
    rate = projected_rate(step, task.optimisation.batch, wants)
    return float(seen / rate / 3600 * wants.nodes * wants.gpus)


def projected_rate(step: Step, batch: int, wants: Resources) -> float:
    """Images a second that all GPUs of the profile take at best, of a global batch."""
    gpus = wants.nodes * wants.gpus
    share = max(1, batch // gpus)
    found = project(step, GPUS[wants.gpu], min(share, wants.device_batch or share), gpus)
    return float(found["images_per_second"])


def counted(stage: Stage, folder: Path = BENCH) -> Step | None:
    """The bench's counts of the stage's step; None where it has none of this encoder."""
    task: Any = stage.task
    if hasattr(task, "method"):
        name, encoder = task.method.name, task.method.encoder.describe()
    elif stage.kind == "tokenizer" and hasattr(task, "depth"):
        name, encoder = "vqkd", f"{task.depth}x{task.width}/{task.patch}"
    elif hasattr(task, "encoder"):
        name, encoder = stage.kind, task.encoder.describe()
    else:
        return None
    for row in rows(folder):
        counts = row.get("counts", {})
        same = (row.get("name"), row.get("encoder")) == (name, encoder)
        if same and set(counts) == {each.name for each in fields(Step)}:
            return Step(**counts)
    return None


@functools.cache
def rows(folder: Path) -> list[Row]:
    """What the bench has kept: read once, however many stages ask."""
    return read(folder) if folder.is_dir() else []
