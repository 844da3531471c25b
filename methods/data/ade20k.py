"""ADE20K's names and the checks that a folder really is in its layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from methods.data.imagefolder import BROKEN
from methods.errors import InputError

# The 150 names in mmsegmentation's order and spelling.
_NAMES = """
wall, building, sky, floor, tree, ceiling, road, bed , windowpane, grass, cabinet,
sidewalk, person, earth, door, table, mountain, plant, curtain, chair, car, water,
painting, sofa, shelf, house, sea, mirror, rug, field, armchair, seat, fence, desk, rock,
wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers,
counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs,
runway, case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind,
coffee table, toilet, flower, book, hill, bench, countertop, stove, palm, kitchen island,
computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck, tower,
chandelier, awning, streetlight, booth, television receiver, airplane, dirt track,
apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van,
ship, fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel,
basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name,
microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood,
sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor,
bulletin board, shower, radiator, glass, clock, flag
"""

CLASSES = tuple(name.strip() for name in " ".join(_NAMES.split()).split(","))
"""mmsegmentation's own "bed " has lost its blank."""

FETCH = (
    "get ADEChallengeData2016.zip (the scene parsing challenge of 2016, from "
    "groups.csail.mit.edu/vision/datasets/ADE20K) and unpack it in the data folder"
)

SAMPLE = 40


def check(root: Path, counts: Mapping[str, int], classes: int = 150) -> None:
    """That `root` has images/<part>/*.jpg and annotations/<part>/*.png with equal stems.

    Also that about SAMPLE masks of each part hold nothing but 0 (unlabelled) and 1 to `classes`.
    InputError says what is missing and where to put it.
    """
    for part, expected in counts.items():
        images = _stems(root / "images" / part, ".jpg")
        masks = _stems(root / "annotations" / part, ".png")
        lonely = sorted(images ^ masks)
        if lonely:
            raise InputError(
                f"{root}: {part}/{lonely[0]} is an image without a mask or a mask without an image "
                f"({len(lonely)} in all). {FETCH}"
            )
        if len(images) != expected:
            raise InputError(
                f"{root}: {part} has {len(images):,} images instead of {expected:,}. {FETCH}"
            )
        chosen = sorted(masks)[:: max(1, len(masks) // SAMPLE)]
        paths = [root / "annotations" / part / f"{stem}.png" for stem in chosen]
        check_labels(paths, classes)


def _stems(folder: Path, suffix: str) -> set[str]:
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist: {FETCH}")
    return {path.stem for path in folder.iterdir() if path.suffix == suffix}


def label_histogram(path: Path) -> np.ndarray:
    """How many pixels have each value: int64 (256,)."""
    try:
        with Image.open(path, formats=("PNG",)) as mask:
            pixels = np.asarray(mask)
    except BROKEN as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if pixels.ndim != 2 or pixels.dtype != np.uint8:
        raise InputError(f"{path} is no mask of one byte a pixel: {FETCH}")
    return np.bincount(pixels.ravel(), minlength=256)


def check_labels(paths: list[Path], classes: int) -> None:
    """InputError where masks are not in the original numbering: 0 unlabelled, k + 1 class k.

    Masks that were already reduced (255 unlabelled) would be shifted once more, without an error.
    """
    counts = np.zeros(256, dtype=np.int64)
    for path in paths:
        here = label_histogram(path)
        if here[classes + 1 :].any():
            raise InputError(
                f"{path}: holds the value {int(np.flatnonzero(here)[-1])}; 0 (unlabelled) to "
                f"{classes} are known, as in the original archive (reduce_zero_label is applied "
                "when reading)"
            )
        counts += here
    if counts[0] > counts.sum() // 2:
        raise InputError(
            f"{paths[0].parent}: more than half of the pixels are 0 (unlabelled): other masks than "
            "the original archive's?"
        )
