"""Signs that a training has gone wrong although its loss is finite; they alarm and stop nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from methods.engine.work import Work, read_line

if TYPE_CHECKING:
    from torch import Tensor

PART = 0.25
"""The first part of the schedule, in which a loss has to move."""
FEWEST = 10  # lines of metrics.jsonl: fewer are noise
STILL = 0.005
"""Relative. Over the stages of the comparison at the mini scale the least change is 0.07."""
ALL = 0.9


def check_loss(work: Work) -> None:
    """Alarm where the loss has not moved in the first part of the schedule; asked at its end."""
    if not work.metrics.exists():
        return
    lines = map(read_line, work.metrics.read_bytes().splitlines())
    found = [line for line in lines if line is not None and "loss" in line]
    losses = [line["loss"] for line in found if line.get("progress", 1.0) <= PART]
    if len(losses) < FEWEST or not is_still(losses):
        return
    work.alarm(
        f"the loss does not move: {losses[0]:.4g} at update {found[0]['step']:.0f}, "
        f"{losses[-1]:.4g} at update {found[len(losses) - 1]['step']:.0f}"
    )


def is_still(losses: Sequence[float]) -> bool:
    """Whether the last fifth of the losses is, on average, where the first was."""
    count = max(1, len(losses) // 5)
    first, last = sum(losses[:count]) / count, sum(losses[-count:]) / count
    return abs(last - first) <= STILL * abs(first)


def check_attention(work: Work, attention: Tensor) -> None:
    """Alarm where all of a teacher's attention (B, N) lies on one patch in most images.

    Masks that are drawn by it then follow that patch and not the picture.
    """
    if attention.shape[1] < 2:
        return
    share = attention.amax(1) / attention.sum(1)
    if bool((share > ALL).float().mean() > 0.5):
        work.alarm(
            "the attention that masks are drawn by is degenerate: "
            f"over {ALL:.0%} of it lies on one patch in most images"
        )
