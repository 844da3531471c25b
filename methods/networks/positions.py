"""The fixed sine-cosine position embedding of MAE and MILAN."""

from __future__ import annotations

import torch
from torch import Tensor


def sine_cosine(width: int, grid: tuple[int, int]) -> Tensor:
    """Embedding (1, 1 + rows x columns, width): a zero row for the class token, then raster order.

    The first half of the channels encodes the column and the second the row, each as all sines and
    then all cosines, with frequencies 10000^(-k / (width / 4)) (MAE `util/pos_embed.py`).
    """
    if width % 4:
        raise ValueError(f"width must be a multiple of 4, not {width}")
    # On the CPU even under torch.device("meta"), in double precision as the source.
    frequency = 10000.0 ** (
        -torch.arange(width // 4, dtype=torch.float64, device="cpu") / (width // 4)
    )

    def axis(size: int) -> Tensor:
        angle = torch.arange(size, dtype=torch.float64, device="cpu")[:, None] * frequency
        return torch.cat([angle.sin(), angle.cos()], dim=1)

    rows, columns = grid
    patches = torch.cat(
        [axis(columns).repeat(rows, 1), axis(rows).repeat_interleave(columns, dim=0)], dim=1
    )
    return torch.cat([torch.zeros(1, width, device="cpu"), patches.float()])[None]
