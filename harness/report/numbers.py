"""Means over seeds, the noise between them, and how numbers are written."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from harness.report.table import Mark

# Four fine-tunings of one MAE checkpoint differ by 0.08 points (facebookresearch/mae FINETUNE.md):
# two seeds that happen to agree better than that prove nothing.
NOISE_FLOOR = 0.08


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (None for one seed) of `n` seeds."""

    mean: float
    std: float | None
    n: int


def summarise(values: Sequence[float]) -> Summary | None:
    """The summary of `values`, or None where there are none."""
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else None
    return Summary(statistics.fmean(values), std, len(values))


def noise(first: Summary, second: Summary) -> float | None:
    """The pooled standard deviation, at least NOISE_FLOOR; None where one has a single seed."""
    if first.std is None or second.std is None:
        return None
    return max(NOISE_FLOOR, math.sqrt((first.std**2 + second.std**2) / 2))


def clearly_above(first: Summary, second: Summary) -> bool:
    """Whether `first` beats `second` by more than the noise between seeds."""
    between = noise(first, second)
    return between is not None and first.mean - second.mean > between


def marks(column: Sequence[Summary | None]) -> list[Mark]:
    """ "best" and "second" where the gap to the next one below exceeds the noise, "" elsewhere.

    The second is marked only below a marked best: behind a draw there is no second place.
    """
    ranked = sorted(
        (index for index, each in enumerate(column) if each is not None),
        key=lambda index: -_mean(column[index]),
    )
    found: list[Mark] = [""] * len(column)
    places: tuple[Mark, Mark] = ("best", "second")
    for place, upper, lower in zip(places, ranked, ranked[1:], strict=False):
        first, second = column[upper], column[lower]
        if first is None or second is None or not clearly_above(first, second):
            break
        found[upper] = place
    return found


def _mean(summary: Summary | None) -> float:
    return summary.mean if summary else -math.inf


def decimal(value: float) -> str:
    """One decimal, as papers print accuracies."""
    return f"{value:.1f}"


def signed(value: float) -> str:
    """One decimal with its sign; zero has none."""
    text = f"{abs(value):.1f}"
    if text == "0.0":
        return text
    return ("+" if value > 0 else "−") + text


def spread(summary: Summary) -> str:
    """`72.3 ± 0.4`, or `72.3` for one seed."""
    text = decimal(summary.mean)
    return text if summary.std is None else f"{text} ± {summary.std:.1f}"


def duration(seconds: float) -> str:
    """`42 s`, `3.4 min`, `12.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def count(value: float) -> str:
    """`850`, `24k`, `512M`: three digits are enough to compare."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def epochs(value: float | None) -> str:
    """`400`, `2.5`, or a dash where a row has no pretraining."""
    return f"{value:g}" if value else "–"
