"""Paired differences over seeds and their interval by Student's t."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from harness.report import numbers

LEVEL = 0.95


@dataclass(frozen=True)
class Effect:
    """Treatment minus control over the seeds that both have. low, high: None for fewer than two."""

    differences: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None


def effect(treatment: Mapping[int, float], control: Mapping[int, float]) -> Effect | None:
    """The mean of the paired differences and its interval; None where no seed has both."""
    seeds = sorted(treatment.keys() & control.keys())
    differences = tuple(treatment[seed] - control[seed] for seed in seeds)
    summary = numbers.summarise(differences)
    if summary is None:
        return None
    if summary.std is None:
        return Effect(differences, summary.mean, None, None)
    reach = quantile(summary.n - 1) * summary.std / math.sqrt(summary.n)
    return Effect(differences, summary.mean, summary.mean - reach, summary.mean + reach)


def quantile(freedom: int) -> float:
    """Student's t that a share of (1 + LEVEL) / 2 lies below."""
    from scipy.special import stdtrit  # scipy.stats would take longer to import than all else

    return float(stdtrit(freedom, (1 + LEVEL) / 2))
