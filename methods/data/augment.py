"""What the augmentation values do to a picture, each draw taken from the sample's own generator."""

from __future__ import annotations

import contextlib
import functools
import math
import random
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps

from methods.parts.augment import (
    Augmentation,
    EvaluationTransform,
    FineTuneAugmentation,
    LinearAugmentation,
    Triple,
    Views,
    mean_std,
)

Generator = np.random.Generator
Box = tuple[int, int, int, int]
"""left, top, right, bottom; in pixels, as PIL counts them."""

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_KERNELS = ("bilinear", "bicubic") + ("lanczos",) * hasattr(torch._C._nn, "_upsample_lanczos2d_aa")
"""What torch resizes by; the third is new in it."""

PHOTOGRAPH = 128
"""Pixels of the shorter side from which on. Below, numbers stay those of Pillow to the last bit."""


class Draws(Protocol):
    """The part of a masking that runs in the loader."""

    def draw(self, generator: Generator, grid: tuple[int, int]) -> np.ndarray:
        """What one sample's mask is made of: (N,)."""


class ToSample:
    """(PIL image, label) -> the views, "label" and, with a masking, "draw" (N,)."""

    def __init__(
        self, views: Views, masking: Draws | None = None, grid: tuple[int, int] | None = None
    ) -> None:
        if (masking is None) != (grid is None):
            raise ValueError("a masking needs the grid of patches, and only a masking does")
        self.views, self.masking, self.grid = views, masking, grid

    def __call__(self, item: tuple[Image.Image, int], generator: Generator) -> dict[str, Any]:
        """One sample; the mask is drawn after the views."""
        image, label = item
        sample = self.views(image, generator)
        sample["label"] = label
        if self.masking is not None and self.grid is not None:
            sample["draw"] = self.masking.draw(generator, self.grid)
        return sample


def to_tensor(image: Image.Image) -> torch.Tensor:
    """uint8 (3, H, W) of an RGB picture."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def crop_box(
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: Generator,
) -> Box:
    """A random box as torchvision's RandomResizedCrop draws it: ten tries, then the centre."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = width * height * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(low, high))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(generator.integers(0, height - h + 1))
            left = int(generator.integers(0, width - w + 1))
            return left, top, left + w, top + h
    return _central_box(width, height, ratio)


def _central_box(width: int, height: int, ratio: tuple[float, float]) -> Box:
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def squares(image: Image.Image, *kinds: tuple[int, str]) -> list[torch.Tensor]:
    """The picture as uint8 (3, size, size), for each (size, interpolation).

    A photograph by torch's kernel, which takes a third of Pillow's time and rounds otherwise: less
    than one of a hundred values differs, by one level. Newer Pillows take columns before rows where
    that is cheaper, torch and the older ones never; there a fifth of the values differs.
    """
    pixels = None
    if min(image.size) >= PHOTOGRAPH:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    return [_square(image, pixels, *kind) for kind in kinds]


def _square(
    image: Image.Image, pixels: torch.Tensor | None, size: int, interpolation: str
) -> torch.Tensor:
    if pixels is None or interpolation not in _KERNELS:
        return to_tensor(image.resize((size, size), _RESAMPLING[interpolation]))
    return F.interpolate(pixels, (size, size), mode=interpolation, antialias=True)[0]


def resized(image: Image.Image, size: int, interpolation: str) -> Image.Image:
    """The square as a picture, for operations on pictures to follow."""
    (square,) = squares(image, (size, interpolation))
    return Image.fromarray(square.permute(1, 2, 0).contiguous().numpy())


def _random_crop(
    image: Image.Image,
    value: Augmentation | FineTuneAugmentation | LinearAugmentation,
    generator: Generator,
) -> Image.Image:
    # crop() before resize(): with resize(box=...) the filter would reach beyond the box, which
    # torchvision's crop does not.
    return image.crop(crop_box(*image.size, value.scale, value.ratio, generator))


def jittered(image: Image.Image, strengths: Triple, generator: Generator) -> Image.Image:
    """Brightness, contrast and saturation in random order, as torchvision's ColorJitter."""
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    factors = [generator.uniform(max(0.0, 1 - x), 1 + x) for x in strengths]
    for which in generator.permutation(3):
        if strengths[which]:
            image = enhancers[which](image).enhance(factors[which])
    return image


@contextlib.contextmanager
def global_rng(generator: Generator) -> Iterator[None]:
    """Seed Python's and numpy's global generators from this one, and restore them afterwards.

    For libraries (timm's RandAugment, mmcv's transforms) that draw from the global ones.
    """
    seed = int(generator.integers(2**32))
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@functools.lru_cache(maxsize=8)
def _rand_augment(
    policy: str, size: int, interpolation: str, statistics: str
) -> Callable[[Image.Image], Image.Image]:
    """timm's RandAugment with the settings that its create_transform gives it."""
    from timm.data import auto_augment

    mean, _ = mean_std(statistics)
    settings = {
        "translate_const": int(size * 0.45),
        "img_mean": tuple(min(255, round(255 * x)) for x in mean),
        "interpolation": _RESAMPLING[interpolation],
    }
    return with_posterize(auto_augment.rand_augment_transform(policy, settings))


def with_posterize(augment: Any) -> Any:
    """timm's RandAugment, whose posterize newer Pillows refuse at full magnitude, repaired."""
    from timm.data import auto_augment

    for operation in augment.ops:
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = _posterize
    return augment


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    # timm asks for 0 bits at full magnitude: black, which newer Pillows refuse to compute.
    if bits == 0:
        return Image.new(image.mode, image.size)
    return ImageOps.posterize(image, bits)


def draw_erasing(probability: float, size: int, generator: Generator) -> torch.Tensor:
    """int64 (5,): top, left, height, width, seed of the noise; height 0 where nothing is erased.

    Area 0.02 to 1/3 and aspect 0.3 to 1/0.3, ten tries: timm's RandomErasing with one box.
    """
    if generator.random() > probability:
        return torch.zeros(5, dtype=torch.int64)
    for _ in range(10):
        area = size * size * generator.uniform(0.02, 1 / 3)
        aspect = math.exp(generator.uniform(math.log(0.3), math.log(1 / 0.3)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if w < size and h < size:
            top, left = generator.integers(0, size - h + 1), generator.integers(0, size - w + 1)
            return torch.tensor([top, left, h, w, generator.integers(2**62)], dtype=torch.int64)
    return torch.zeros(5, dtype=torch.int64)


class PretrainViews:
    """Jitter, flip and crop, shared by the view(s)."""

    def __init__(self, value: Augmentation) -> None:
        self.value = value
        self.kinds = {"image": (value.size, value.interpolation)}
        if value.second is not None:
            second = value.second.size, value.second.interpolation
            if second != self.kinds["image"]:
                self.kinds["second"] = second

    def __call__(self, image: Image.Image, generator: Generator) -> dict[str, torch.Tensor]:
        """ "image" and, where it would differ from "image", "second"."""
        value = self.value
        if value.jitter is not None:
            image = jittered(image, value.jitter, generator)
        # The small views are mirrored instead of the picture: cheaper, and the same distribution.
        flip = bool(generator.random() < value.flip)
        views = squares(_random_crop(image, value, generator), *self.kinds.values())
        return dict(zip(self.kinds, (_mirrored(view, flip) for view in views), strict=True))


def _mirrored(image: torch.Tensor, flip: bool) -> torch.Tensor:
    return image.flip(-1) if flip else image


class LinearViews:
    """Crop and flip."""

    def __init__(self, value: LinearAugmentation) -> None:
        self.value = value

    def __call__(self, image: Image.Image, generator: Generator) -> dict[str, torch.Tensor]:
        """ "image"."""
        value = self.value
        crop = _random_crop(image, value, generator)
        flip = bool(generator.random() < value.flip)
        (view,) = squares(crop, (value.size, value.interpolation))
        return {"image": _mirrored(view, flip)}


class FineTuneViews:
    """Crop, flip, then RandAugment or jitter; and where to erase later."""

    def __init__(self, value: FineTuneAugmentation) -> None:
        self.value = value

    def __call__(self, image: Image.Image, generator: Generator) -> dict[str, torch.Tensor]:
        """ "image" and, where erasing > 0, "erase"."""
        value = self.value
        image = resized(_random_crop(image, value, generator), value.size, value.interpolation)
        if generator.random() < value.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if value.jitter is not None:
            image = jittered(image, value.jitter, generator)
        if value.rand_augment is not None:
            augment = _rand_augment(
                value.rand_augment, value.size, value.interpolation, value.statistics
            )
            with global_rng(generator):
                image = augment(image)
        views = {"image": to_tensor(image)}
        if value.erasing:
            views["erase"] = draw_erasing(value.erasing, value.size, generator)
        return views


class EvaluationViews:
    """Resize and centre crop, as torchvision's Resize and CenterCrop do on PIL pictures."""

    def __init__(self, value: EvaluationTransform) -> None:
        self.value = value

    def __call__(self, image: Image.Image, generator: Generator) -> dict[str, torch.Tensor]:
        """ "image"; `generator` is not used."""
        side, size = self.value.shorter_side, self.value.size
        width, height = image.size
        if width <= height:
            shape = side, int(side * height / width)
        else:
            shape = int(side * width / height), side
        image = image.resize(shape, _RESAMPLING[self.value.interpolation])
        left, top = round((shape[0] - size) / 2), round((shape[1] - size) / 2)
        return {"image": to_tensor(image.crop((left, top, left + size, top + size)))}
