"""Where a study's time went: by stage kind, and how much of it was training."""

from __future__ import annotations

from collections.abc import Iterable

from harness.reconcile import Decision
from harness.stage import KINDS
from harness.view import duration

COST = ("seconds", "images", "images_per_second")


def spent(decisions: Iterable[Decision]) -> list[str]:
    """Lines for people about the stages that are done; none without any.

    A stage's time runs from its process's start to its outcome; of that, training is its images at
    their pace, data included. The rest starts, evaluates, saves and exports.
    """
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for decision in decisions:
        if decision.outcome is None or not decision.outcome.done:
            continue
        cost = decision.outcome.cost
        seconds, images, pace = (float(cost.get(name, 0.0)) for name in COST)
        trained = min(images / pace, seconds) if pace else 0.0
        found[decision.stage.kind].append((seconds, trained))
    lines = [_line(kind, times) for kind, times in found.items() if times]
    together = [each for times in found.values() for each in times]
    return [*lines, _line("together", together)] if lines else []


def _line(name: str, times: list[tuple[float, float]]) -> str:
    seconds = sum(each for each, _ in times)
    share = sum(each for _, each in times) / seconds if seconds else 0.0
    number = f"{len(times)} stage{'s' if len(times) > 1 else ''}"
    return f"{name:13}{number:>11}  {duration(seconds):>7}  {share:4.0%} of it training"
