"""How sure a ratio of medians is: a bootstrap interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DRAWS = 2000


def ratio_interval(
    above: Sequence[float], below: Sequence[float], level: float = 0.95
) -> tuple[float, float]:
    """The interval of median(above) / median(below), where the two were measured in turn.

    Pairs are drawn with replacement, so that what slowed both at a time cancels out.
    """
    first, second = np.asarray(above), np.asarray(below)
    draws = np.random.default_rng(0).integers(0, len(first), (DRAWS, len(first)))
    ratios = np.median(first[draws], axis=1) / np.median(second[draws], axis=1)
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
