"""Relative positions at another size of the input, as BEiT's fine-tuning code resizes them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

PREFIX_ROWS = 3  # class to patch, patch to class, class to class: BEiT's last rows


def resize_bias_table(table: Tensor, grid: int) -> Tensor:
    """A relative position bias table (rows,heads) for a grid of `grid` x `grid` patches.

    BEiT (run_class_finetuning.py): the source samples lie at distances that grow geometrically, so
    that near neighbours keep their resolution, and a cubic spline runs through them. timm's own
    resizing is linear there.
    """
    side = int((len(table) - PREFIX_ROWS) ** 0.5)
    wanted = 2 * grid - 1
    if side == wanted:
        return table
    from scipy.interpolate import RectBivariateSpline

    samples = _sample_distances(side, wanted)
    targets = np.arange(-(wanted // 2), wanted // 2 + 1.0)
    degree = min(3, side - 1)
    maps = table[:-PREFIX_ROWS].T.reshape(-1, side, side).double().numpy()
    resized = [
        RectBivariateSpline(samples, samples, each, kx=degree, ky=degree)(targets, targets)
        for each in maps
    ]
    rows = torch.from_numpy(np.stack(resized)).flatten(1).T.to(table)
    return torch.cat([rows, table[-PREFIX_ROWS:]])


def _sample_distances(side: int, wanted: int) -> np.ndarray:
    """Where the samples of a table of odd `side` lie on the axis of one with side `wanted`."""
    low, high, half = 1.01, 1.5, side // 2
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio**half) / (1 - ratio) > wanted // 2:
            high = ratio
        else:
            low = ratio
    # The last ratio tried, as there: the outermost sample may lie 1e-6 off the border.
    steps = np.cumsum([ratio**power for power in range(half)])
    return np.concatenate([-steps[::-1], [0.0], steps])
