"""Patchwork: small scenes of ten materials, cut from photographs in the scikit-image wheel."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from filelock import FileLock
from PIL import Image

from methods.data.wheels import package_file
from methods.errors import InputError

if TYPE_CHECKING:
    from methods.data.sets import _Scenes

VERSION = 1
"""Part of the folder's name: raised when the scenes change."""

Side = Literal["left", "right"]


@dataclass(frozen=True)
class Photograph:
    """A photograph of one material; `zoom` shrinks it so that 48 pixels show enough of it.

    `box` (left, top, right, bottom) is the part that shows the material, None for all of it.
    """

    file: str
    sha256: str
    zoom: float
    box: tuple[int, int, int, int] | None = None


PHOTOGRAPHS = {
    "brick": Photograph("brick.png", "7966caf324f6ba84", 0.6),
    "coins": Photograph("coins.png", "f8d773fc9cfa6f4d", 0.6),
    "fur": Photograph("chelsea.png", "596aa1e7cb875eb7", 1.0, (40, 0, 300, 120)),
    "galaxies": Photograph("hubble_deep_field.jpg", "3a19c5dd8a927a93", 0.5),
    "grass": Photograph("grass.png", "b6b6022426b38936", 0.6),
    "gravel": Photograph("gravel.png", "c48615b451bf1e60", 0.6),
    "moon": Photograph("moon.png", "78739619d11f7eb9", 0.5),
    "page": Photograph("page.png", "341a6f0a61557662", 0.7),
    "retina": Photograph("retina.jpg", "38a07f36f27f095e", 0.28, (250, 230, 1190, 1180)),
    "tissue": Photograph("ihc.png", "f8dd1aa387ddd1f4", 0.5),
}
"""By material in the order of the labels; the hash since a changed picture changes every number."""

SHARE = 0.7
"""Students and teacher see the left 70 % of each photograph, validation the rest."""

PIECE = 1000
"""Scenes that one process writes at a time."""

UNLABELLED, BACKGROUND, FIRST = 0, 1, 2
"""Values in a mask; material k is FIRST + k."""

_STREAMS = {"train": 0, "teacher": 1, "validation": 2}
_ADE = {"train": "training", "validation": "validation"}
_CROPS = (1.0, 0.85, 0.72)
"""Each texture is taken at one of these scales."""


@dataclass(frozen=True)
class Scene:
    """image uint8 (S, S, 3), mask uint8 (S, S), label 0 to 9, caption of what can be seen."""

    image: np.ndarray
    mask: np.ndarray
    label: int
    caption: str


@functools.cache
def textures(material: str, side: Side) -> tuple[np.ndarray, ...]:
    """One part of a material's photograph at each scale: float32 (H, W, 3) in [0, 1].

    Cut before it is scaled, so that no pixel of one side reaches the other.
    """
    photograph = PHOTOGRAPHS[material]
    path = package_file("skimage", "data", photograph.file)
    if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(photograph.sha256):
        raise InputError(f"{path} is not the picture that Patchwork is defined by")
    with Image.open(path) as image:
        picture = image.convert("RGB").crop(photograph.box)
    border = int(picture.width * SHARE)
    box = (0, 0, border, picture.height) if side == "left" else (border, 0, *picture.size)
    part = picture.crop(box)
    scaled = []
    for crop in _CROPS:
        size = [round(x * photograph.zoom * crop) for x in part.size]
        pixels = part.resize((size[0], size[1]), Image.Resampling.LANCZOS)
        scaled.append(np.asarray(pixels, dtype=np.float32) / 255)
    return tuple(scaled)


def scene(index: int, split: str, size: int, seed: int) -> Scene:
    """Scene `index` of a split; its label is index mod 10, all else is drawn from (seed, ...)."""
    generator = np.random.default_rng([seed, _STREAMS[split], index])
    side: Side = "right" if split == "validation" else "left"
    names = tuple(PHOTOGRAPHS)
    label = index % len(names)
    image = _background(size, generator)
    mask = np.full((size, size), BACKGROUND, dtype=np.uint8)
    for _ in range(generator.integers(0, 3)):
        small = int(generator.integers(len(names)))
        centre, radius = generator.uniform(0, size, 2), size * generator.uniform(0.09, 0.16)
        _lay(image, mask, small, side, centre, radius, generator)
    centre = size / 2 + size * generator.uniform(-0.08, 0.08, 2)
    _lay(image, mask, label, side, centre, size * generator.uniform(0.27, 0.4), generator)
    image += np.float32(0.02) * generator.standard_normal(image.shape, dtype=np.float32)
    pixels = (image.clip(0, 1) * 255).round().astype(np.uint8)
    return Scene(pixels, mask, label, _caption(mask, label))


def _background(size: int, generator: np.random.Generator) -> np.ndarray:
    """Smooth noise float32 (S, S, 3): a coarse grid of colours, interpolated."""
    cells = int(generator.integers(3, 6))
    colours = 0.1 + 0.8 * generator.random((3, cells, cells), dtype=np.float32)
    weights = _interpolation(cells, size)
    return np.ascontiguousarray((weights @ colours @ weights.T).transpose(1, 2, 0))


@functools.cache
def _interpolation(cells: int, size: int) -> np.ndarray:
    """float32 (S, cells): smooth weights with which a pixel mixes its two nearest cells."""
    place = np.linspace(0, cells - 1, size, dtype=np.float32)
    distance = np.abs(place[:, None] - np.arange(cells, dtype=np.float32)).clip(0, 1)
    return 1 - distance**2 * (3 - 2 * distance)


@functools.cache
def _grid(size: int) -> np.ndarray:
    """float32 (2, S, S): y and x of the pixels' centres."""
    centres = np.arange(size, dtype=np.float32) + np.float32(0.5)
    return np.stack(np.meshgrid(centres, centres, indexing="ij"))


def _lay(
    image: np.ndarray,
    mask: np.ndarray,
    material: int,
    side: Side,
    centre: np.ndarray,
    radius: float,
    generator: np.random.Generator,
) -> None:
    """Lay a blob of a material over image and mask; a rim of about a pixel stays unlabelled."""
    size = len(mask)
    texture = _texture(tuple(PHOTOGRAPHS)[material], side, size, generator)
    y, x = _grid(size) - centre.astype(np.float32)[:, None, None]
    angle = np.arctan2(y, x)
    edge = np.ones((size, size), dtype=np.float32)
    for wave in (2, 3, 5):
        depth, phase = generator.uniform(0, 0.3) / wave, generator.uniform(0, 7)
        edge += np.float32(depth) * np.cos(wave * angle + np.float32(phase))
    inside = np.float32(radius) * edge - np.sqrt(x * x + y * y)
    cover = (inside + 0.5).clip(0, 1)[..., None]
    image += cover * (texture - image)
    mask[inside > -0.5] = UNLABELLED
    mask[inside > 0.5] = FIRST + material


def _texture(material: str, side: Side, size: int, generator: np.random.Generator) -> np.ndarray:
    """A random crop (S, S, 3) of the photograph, mirrored or not, tinted."""
    part = textures(material, side)[generator.integers(len(_CROPS))]
    crops = [_crop(part, size, generator) for _ in range(2)]
    # The livelier of two: a photograph has empty corners that show no material at all.
    crop = max(crops, key=np.std)
    if generator.random() < 0.5:
        crop = crop[:, ::-1]
    grey = crop.mean(-1, keepdims=True)
    colour = grey + np.float32(generator.uniform(0, 0.5)) * (crop - grey)
    return colour * generator.uniform(0.6, 1.3, 3).astype(np.float32)


def _crop(part: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    top, left = (int(generator.integers(x - size + 1)) for x in part.shape[:2])
    return part[top : top + size, left : left + size]


def _caption(mask: np.ndarray, label: int) -> str:
    """The large blob's material first, then the small ones by name."""
    names = tuple(PHOTOGRAPHS)
    others = [int(v) - FIRST for v in np.unique(mask) if v >= FIRST and v != FIRST + label]
    return "a photo of " + " and ".join(names[k] for k in (label, *others))


def build(value: _Scenes, folder: Path) -> None:
    """Write the scenes to `folder`, unless they are there; the same bytes each time.

    classification/<split>/<class>/*.png with <split>.captions.json beside, and
    ADEChallengeData2016/{images,annotations}/{training,validation}. Built aside and renamed, so
    a folder that exists is complete; of two processes one waits for the other.
    """
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if folder.is_dir():
            return
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        for split in _STREAMS:
            _write_split(value, split, part)
        os.replace(part, folder)


def _write_split(value: _Scenes, split: str, folder: Path) -> None:
    classification = folder / "classification" / split
    for name in PHOTOGRAPHS:
        (classification / name).mkdir(parents=True)
    images, masks = (
        folder / "ADEChallengeData2016" / kind / _ADE.get(split, "")
        for kind in ("images", "annotations")
    )
    if split in _ADE:
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
    captions: dict[str, str] = {}
    total = value.images(split)  # type: ignore[arg-type]
    pieces = [range(first, min(first + PIECE, total)) for first in range(0, total, PIECE)]
    write = functools.partial(_write_scenes, value, split, classification, images, masks)
    with ProcessPoolExecutor(mp_context=get_context("fork")) as pool:
        for found in (pool.map if len(pieces) > 1 else map)(write, pieces):
            captions |= found
    text = json.dumps(captions, indent=0, sort_keys=True)
    classification.with_name(f"{split}.captions.json").write_text(text)


def _write_scenes(
    value: _Scenes, split: str, classification: Path, images: Path, masks: Path, indices: range
) -> dict[str, str]:
    """Writes these scenes of a split; their captions by file name."""
    captions = {}
    for index in indices:
        made = scene(index, split, value.size, value.seed)
        name = f"{tuple(PHOTOGRAPHS)[made.label]}/{index:06d}.png"
        picture = Image.fromarray(made.image)
        picture.save(classification / name, compress_level=1)
        captions[name] = made.caption
        if split in _ADE:
            # As little loss as JPEG allows: full colour resolution, fine quantisation.
            picture.save(images / f"{index:06d}.jpg", quality=97, subsampling=0)
            Image.fromarray(made.mask).save(masks / f"{index:06d}.png", compress_level=1)
    return captions
