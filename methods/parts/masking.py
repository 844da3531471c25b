"""Which patches an encoder does not see: four ways to choose them, as values without torch.

A mask has two halves. `draw` runs in the data loader from the sample's own random generator, so
that no mask depends on rank, worker or micro-batch; `mask` turns the drawn numbers into hidden
patches on the device, where a teacher's attention may be at hand. A mask is True where a patch is
hidden.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True)
class Masking:
    """Base of the ways to mask."""

    exact = True  # no annotation: a subclass may make it a field
    """Whether every mask hides `count` patches."""
    statistics = "imagenet"
    """Statistics of the images that the network in `needs` sees."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Roles of the frozen networks that the mask depends on."""
        return ()

    def describe(self) -> str:
        """The name in tables."""
        return type(self).__name__

    def count(self, patches: int) -> int:
        """Hidden patches of `patches`; where not `exact`, an upper bound."""
        raise NotImplementedError

    def draw(self, generator: np.random.Generator, grid: tuple[int, int]) -> NDArray[np.generic]:
        """One sample's random numbers, (N,) float32, or its mask, (N,) bool, in raster order."""
        raise NotImplementedError

    def mask(self, draw: Tensor, attention: Tensor | None = None) -> Tensor:
        """The hidden patches, (B, N) bool, of the draws (B, N)."""
        return draw


def _hide_last(score: Tensor, hidden: int) -> Tensor:
    """True for all but the N - `hidden` lowest scores of each row of (B, N)."""
    rank = score.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return rank >= score.shape[1] - hidden


def _check_ratio(ratio: float) -> None:
    if not 0 < ratio < 1:
        raise ValueError(f"ratio must be above 0 and below 1, not {ratio}")


@dataclass(frozen=True)
class Random(Masking):
    """Uniformly random patches; int(N (1 - ratio)) stay (MAE)."""

    ratio: float = 0.75

    def __post_init__(self) -> None:
        _check_ratio(self.ratio)

    def describe(self) -> str:
        return f"random {self.ratio:g}"

    def count(self, patches: int) -> int:
        return patches - int(patches * (1 - self.ratio))

    def draw(self, generator: np.random.Generator, grid: tuple[int, int]) -> NDArray[np.generic]:
        return generator.random(grid[0] * grid[1], dtype=np.float32)

    def mask(self, draw: Tensor, attention: Tensor | None = None) -> Tensor:
        return _hide_last(draw, self.count(draw.shape[1]))


@dataclass(frozen=True)
class SemanticAware(Masking):
    """Patches that the teacher's class token attends to are likelier to stay visible (MILAN).

    The visible ones are drawn one by one without replacement, with probabilities proportional to
    the attention: the order of log attention plus Gumbel noise. `statistics` are those of the
    images that the teacher sees; MILAN gives CLIP the student's own tensor.
    """

    ratio: float = 0.75
    teacher: str = "clip"
    statistics: Literal["imagenet", "clip"] = "imagenet"

    def __post_init__(self) -> None:
        _check_ratio(self.ratio)

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.teacher,)

    def describe(self) -> str:
        return f"semantic-aware {self.ratio:g} ({self.teacher.upper()})"

    def count(self, patches: int) -> int:
        return patches - int(patches * (1 - self.ratio))

    def draw(self, generator: np.random.Generator, grid: tuple[int, int]) -> NDArray[np.generic]:
        return generator.gumbel(size=grid[0] * grid[1]).astype(np.float32)

    def mask(self, draw: Tensor, attention: Tensor | None = None) -> Tensor:
        """The hidden patches, (B, N) bool, from Gumbel noise and the attention, both (B, N)."""
        if attention is None:
            raise ValueError("semantic-aware masking needs the teacher's attention")
        # In half precision small attentions underflow to 0, whose logarithm would tie them all.
        importance = attention.float().clamp_min(1e-12).log()
        return _hide_last(-(importance + draw), self.count(draw.shape[1]))


@dataclass(frozen=True)
class Cells(Masking):
    """Random square cells of `cell` x `cell` patches; ceil(ratio x cells) are hidden (SimMIM).

    2 patches are the 32 pixels of a 224-pixel image in patches of 16.
    """

    ratio: float = 0.6
    cell: int = 2

    def __post_init__(self) -> None:
        _check_ratio(self.ratio)
        if self.cell < 1:
            raise ValueError(f"cell must be at least 1 patch, not {self.cell}")

    def describe(self) -> str:
        return f"random {self.ratio:g}, cells {self.cell}x{self.cell}"

    def count(self, patches: int) -> int:
        return math.ceil(self.ratio * (patches // self.cell**2)) * self.cell**2

    def draw(self, generator: np.random.Generator, grid: tuple[int, int]) -> NDArray[np.generic]:
        if grid[0] % self.cell or grid[1] % self.cell:
            raise ValueError(f"cell must divide the grid {grid}, not be {self.cell}")
        rows, columns = grid[0] // self.cell, grid[1] // self.cell
        cells = np.zeros(rows * columns, dtype=bool)
        hidden = math.ceil(self.ratio * rows * columns)
        cells[generator.permutation(rows * columns)[:hidden]] = True
        square = np.ones((self.cell, self.cell), dtype=bool)
        return np.kron(cells.reshape(rows, columns), square).astype(bool).reshape(-1)


@dataclass(frozen=True)
class Blockwise(Masking):
    """Rectangles until `count` patches are hidden (BEiT), as a share of a grid of `of` patches.

    A rectangle has `minimum` patches or more (while that many are missing) and an aspect ratio from
    0.3 to 1/0.3. With `exact` single patches then correct the count (BEiT v2); without, `count` is
    an upper bound that two masks of three reach (BEiT v1).
    """

    hidden: int = 75
    of: int = 196
    minimum: int = 16
    exact: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.hidden < self.of:
            raise ValueError(f"hidden must be from 1 to {self.of - 1}, not {self.hidden}")
        if not 0 < self.minimum <= self.hidden:
            raise ValueError(f"minimum must be from 1 to {self.hidden}, not {self.minimum}")

    def describe(self) -> str:
        return f"blockwise {'' if self.exact else 'up to '}{self.hidden}/{self.of}"

    def count(self, patches: int) -> int:
        return max(1, round(self.hidden * patches / self.of))

    def draw(self, generator: np.random.Generator, grid: tuple[int, int]) -> NDArray[np.generic]:
        mask = np.zeros(grid, dtype=bool)
        count = self.count(mask.size)
        minimum = max(1, round(self.minimum * mask.size / self.of))
        while (missing := count - int(mask.sum())) > 0:
            if not _add_rectangle(mask, minimum, missing, generator):
                break
        flat = mask.reshape(-1)
        if self.exact:
            _force_count(flat, count, generator)
        return flat


def _add_rectangle(
    mask: NDArray[np.bool_], minimum: int, missing: int, generator: np.random.Generator
) -> bool:
    """Hide one rectangle with 1 to `missing` new patches; False where ten tries find none."""
    rows, columns = mask.shape
    for _ in range(10):
        # Not generator.uniform, which refuses a lower bound above the upper one.
        area = minimum + (missing - minimum) * generator.random()
        aspect = math.exp(generator.uniform(math.log(0.3), -math.log(0.3)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= rows or width >= columns:
            continue
        top = generator.integers(rows - height, endpoint=True)
        left = generator.integers(columns - width, endpoint=True)
        block = mask[top : top + height, left : left + width]
        if 0 < block.size - int(block.sum()) <= missing:
            block[:] = True
            return True
    return False


def _force_count(mask: NDArray[np.bool_], count: int, generator: np.random.Generator) -> None:
    """Hide or show uniformly chosen single patches until `count` are hidden."""
    difference = count - int(mask.sum())
    candidates = np.flatnonzero(mask != (difference > 0))
    mask[generator.choice(candidates, size=abs(difference), replace=False)] = difference > 0
