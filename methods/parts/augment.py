"""Augmentations as values: what is done to a picture before a network sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Interpolation = Literal["bilinear", "bicubic", "lanczos"]
Statistics = Literal["imagenet", "clip", "half"]
Views = Callable[[Any, Any], dict[str, Any]]
"""(PIL image, numpy Generator) -> {"image": uint8 (3, H, W), ...}; the same for the same draw."""

Triple = tuple[float, float, float]

_MEAN_STD: dict[str, tuple[Triple, Triple]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def mean_std(statistics: str) -> tuple[Triple, Triple]:
    """Mean and standard deviation per channel of images in [0, 1]."""
    return _MEAN_STD[statistics]


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"size must be positive, not {size}")


def _check_crop(scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"scale must be two fractions of the area in order, not {scale}")
    if not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"ratio must be two positive numbers in order, not {ratio}")


def _check_fractions(**fractions: float) -> None:
    for name, value in fractions.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie between 0 and 1, not {value}")


def _check_jitter(jitter: Triple | None) -> None:
    if jitter is not None and min(jitter) < 0:
        raise ValueError(f"jitter must not be negative, not {jitter}")


@dataclass(frozen=True)
class SecondView:
    """The same flip, crop and colours resized once more, for the tokenizer (BEiT, BEiT v2)."""

    size: int
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        _check_size(self.size)


@dataclass(frozen=True)
class Augmentation:
    """Pretraining: colour jitter of the whole picture -> flip -> random resized crop.

    The order is BEiT v2's (recipes of MAE and MILAN have no jitter, where the order is moot).
    `scale` is the share of the area that a crop covers, `jitter` the brightness, contrast and
    saturation strengths of torchvision's ColorJitter.
    """

    size: int = 224
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bicubic"
    flip: float = 0.5
    jitter: Triple | None = None
    second: SecondView | None = None
    statistics: Statistics = "imagenet"

    def __post_init__(self) -> None:
        _check_size(self.size)
        _check_crop(self.scale, self.ratio)
        _check_fractions(flip=self.flip)
        _check_jitter(self.jitter)

    def build(self) -> Views:
        """Views giving "image" and, where `second` is set, "second"; uint8 (3, H, W)."""
        from methods.data.augment import PretrainViews

        return PretrainViews(self)


@dataclass(frozen=True)
class FineTuneAugmentation:
    """ImageNet fine-tuning as MAE, MILAN and BEiT v2 share it (timm's create_transform and Mixup).

    Crop -> flip -> RandAugment (or jitter) in the loader; normalise -> random erasing ->
    mixup or cutmix on the device (methods.data.mixing).
    """

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bicubic"
    flip: float = 0.5
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    jitter: Triple | None = None
    erasing: float = 0.25
    mixup: float = 0.8
    cutmix: float = 1.0
    mix_probability: float = 1.0
    switch: float = 0.5
    smoothing: float = 0.1
    statistics: Statistics = "imagenet"

    def __post_init__(self) -> None:
        _check_size(self.size)
        _check_crop(self.scale, self.ratio)
        _check_fractions(
            flip=self.flip,
            erasing=self.erasing,
            mix_probability=self.mix_probability,
            switch=self.switch,
            smoothing=self.smoothing,
        )
        _check_jitter(self.jitter)
        if self.mixup < 0 or self.cutmix < 0:
            raise ValueError("mixup and cutmix are the alpha of a beta distribution, 0 for none")
        if self.rand_augment is not None and not self.rand_augment.startswith("rand-"):
            raise ValueError(f"rand_augment must look like 'rand-m9', not {self.rand_augment!r}")
        if self.rand_augment is not None and self.jitter is not None:
            raise ValueError("timm leaves out the colour jitter where RandAugment is on: set one")

    def build(self) -> Views:
        """Views giving "image" uint8 (3, H, W) and, where erasing > 0, "erase" int64 (5,)."""
        from methods.data.augment import FineTuneViews

        return FineTuneViews(self)


@dataclass(frozen=True)
class LinearAugmentation:
    """Linear probing: random resized crop and flip only (MAE's main_linprobe.py)."""

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bicubic"
    flip: float = 0.5
    statistics: Statistics = "imagenet"

    def __post_init__(self) -> None:
        _check_size(self.size)
        _check_crop(self.scale, self.ratio)
        _check_fractions(flip=self.flip)

    def build(self) -> Views:
        """Views giving "image" uint8 (3, H, W)."""
        from methods.data.augment import LinearViews

        return LinearViews(self)


@dataclass(frozen=True)
class EvaluationTransform:
    """Shorter side to `resize` (None: size * 256 / 224, a crop of 0.875), then the centre."""

    size: int = 224
    resize: int | None = None
    interpolation: Interpolation = "bicubic"
    statistics: Statistics = "imagenet"

    def __post_init__(self) -> None:
        _check_size(self.size)
        if self.resize is not None and self.resize < self.size:
            raise ValueError(f"resize ({self.resize}) must not be below size ({self.size})")

    @property
    def shorter_side(self) -> int:
        """Pixels of the shorter side before the centre crop."""
        return self.resize if self.resize is not None else int(self.size * 256 / 224)

    def build(self) -> Views:
        """Views giving "image" uint8 (3, H, W); draws nothing."""
        from methods.data.augment import EvaluationViews

        return EvaluationViews(self)
