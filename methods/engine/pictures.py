"""What a finished stage draws for people: strips of four images, each a small PNG file."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from methods.engine import distributed
from methods.engine.work import Work

COUNT = 4
SMALL, LARGE, GAP = 96, 128, 4  # pixels
COLOURS = 128  # of a file; enough for photographs of this size, at a third of the bytes

# Viridis at equal distances: its lightness rises evenly, also for the colour-blind and in print.
VIRIDIS = np.array(
    [
        (68, 1, 84),
        (71, 44, 122),
        (59, 81, 139),
        (44, 113, 142),
        (33, 144, 141),
        (39, 173, 129),
        (92, 200, 99),
        (170, 220, 50),
        (253, 231, 37),
    ]
)

Tile = np.ndarray[Any, np.dtype[np.uint8]]
"""uint8 (H, W, 4), red, green, blue and opacity."""


@dataclass(frozen=True)
class Strip:
    """Tiles side by side; `name` is the file's, and `text` says what a reader sees in it."""

    name: str
    text: str
    tiles: Sequence[Tile]


def draw(work: Work, strips: Callable[[], Iterable[Strip]]) -> None:
    """Write `strips()` to pictures/*.png of the stage's folder, on rank 0, in place of older ones.

    For the very end of a stage: nothing depends on it, so whatever goes wrong is an alarm.
    """
    if work.layout.rank != 0:
        return
    try:
        with torch.no_grad(), distributed.alone():
            write(work.folder / "pictures", list(strips()))
    except Exception as error:
        work.alarm(f"no pictures were drawn: {type(error).__name__}: {error}")


def indices(length: int) -> list[int]:
    """Which of `length` images are drawn: the same ones for every stage, evenly spread."""
    count = min(COUNT, length)
    # One further each time: where classes take turns they would all be of the same class.
    turn = length >= 10 * COUNT
    return [(2 * n + 1) * length // (2 * count) + n * turn for n in range(count)]


def photo(image: Tensor, seen: Tensor | None = None) -> Tile:
    """An image (3, H, W) in [0, 1]; what lies in no patch of `seen` (rows, columns) is left out."""
    pixels = (image.float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    opacity = np.full(pixels.shape[:2], 255, np.uint8)
    if seen is not None:
        side = len(pixels) // len(seen)
        opacity *= seen.cpu().numpy().repeat(side, axis=0).repeat(side, axis=1)
    return np.dstack([pixels, opacity])


def heat(values: Tensor, side: int = 1, high: float = 1.0) -> Tile:
    """Values (rows, columns) as squares of `side` pixels, 0 (dark) to `high` (bright); no NaN."""
    found = values.detach().float().cpu().numpy()
    share = np.nan_to_num(found / max(high, 1e-12)).clip(0, 1)
    places = np.linspace(0, 1, len(VIRIDIS))
    colours = [np.interp(share, places, VIRIDIS[:, channel]) for channel in range(3)]
    tile = np.dstack([*colours, 255.0 * np.isfinite(found)]).round().astype(np.uint8)
    return tile.repeat(side, axis=0).repeat(side, axis=1)


def write(folder: Path, strips: list[Strip]) -> None:
    """Leave these strips as PNG files in `folder` and no others."""
    folder.mkdir(exist_ok=True)
    names = {f"{strip.name}.png" for strip in strips}
    for path in folder.glob("*.png"):
        if path.name not in names:
            path.unlink()
    for strip in strips:
        about = PngInfo()
        about.add_itxt("Description", strip.text)
        aside = folder / f".{strip.name}.new"
        _join(strip.tiles).save(aside, "PNG", optimize=True, pnginfo=about)
        os.replace(aside, folder / f"{strip.name}.png")


def _join(tiles: Sequence[Tile]) -> Image.Image:
    side = max(tile_side(max(tile.shape[:2])) for tile in tiles)
    whole = Image.new("RGBA", (len(tiles) * (side + GAP) - GAP, side))
    for number, tile in enumerate(tiles):
        whole.paste(_resized(Image.fromarray(tile, "RGBA"), side), (number * (side + GAP), 0))
    return whole.quantize(COLOURS, Image.Quantize.FASTOCTREE)


def tile_side(pixels: int) -> int:
    """Pixels of a tile's longer side: whole multiples or fractions keep patches in their shape."""
    if pixels <= SMALL:
        return pixels * (SMALL // pixels)
    return pixels // math.ceil(pixels / LARGE)


def _resized(image: Image.Image, side: int) -> Image.Image:
    share = side / max(image.size)
    width, height = (max(1, round(pixels * share)) for pixels in image.size)
    resample = Image.Resampling.BOX if share < 1 else Image.Resampling.NEAREST
    return image.resize((width, height), resample)
