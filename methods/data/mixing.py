"""What is done to a batch on the device: normalisation, random erasing, mixup and cutmix."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from methods.parts.augment import FineTuneAugmentation, mean_std


def to_float(images: torch.Tensor) -> torch.Tensor:
    """Images in [0, 1]: uint8 is divided by 255, floats are left as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def normalise(images: torch.Tensor, statistics: str) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] -> (x - mean) / std."""
    mean, std = (
        torch.tensor(x, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
        for x in mean_std(statistics)
    )
    return (images - mean) / std


def erase(images: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Normalised images (B, 3, H, W) with N(0, 1) noise in each sample's box.

    `boxes` (B, 5) as `draw_erasing` gives them. The noise is drawn on the CPU from the sample's
    own seed, so that it is the same on every device and in every micro-batch.
    """
    images = images.clone()
    for image, (top, left, height, width, seed) in zip(images, boxes.tolist(), strict=True):
        if height:
            noise = torch.randn(
                (image.shape[0], height, width), generator=torch.Generator().manual_seed(seed)
            )
            image[:, top : top + height, left : left + width] = noise.to(image)
    return images


@dataclass(frozen=True)
class Mix:
    """How a step's images are mixed with their neighbours: `kept` is lambda, the own share.

    `box` (top, bottom, left, right) is the part taken from the neighbour (cutmix); None: mixup.
    """

    kept: float
    box: tuple[int, int, int, int] | None = None


def draw_mix(
    augmentation: FineTuneAugmentation, seed: int, step: int, height: int, width: int
) -> Mix:
    """The step's mix, the same for the whole global batch (timm's Mixup in "batch" mode)."""
    generator = np.random.default_rng([seed, step, 0x6D6978])
    mixup, cutmix = augmentation.mixup, augmentation.cutmix
    if not (mixup or cutmix) or generator.random() >= augmentation.mix_probability:
        return Mix(1.0)
    if cutmix and (not mixup or generator.random() < augmentation.switch):
        return _cutmix(float(generator.beta(cutmix, cutmix)), height, width, generator)
    return Mix(float(generator.beta(mixup, mixup)))


def _cutmix(kept: float, height: int, width: int, generator: np.random.Generator) -> Mix:
    """A box of the share 1 - kept; where the border cuts it, `kept` is corrected."""
    cut_h, cut_w = (int(side * math.sqrt(1 - kept)) for side in (height, width))
    y, x = int(generator.integers(height)), int(generator.integers(width))
    top, bottom = max(y - cut_h // 2, 0), min(y + (cut_h + 1) // 2, height)
    left, right = max(x - cut_w // 2, 0), min(x + (cut_w + 1) // 2, width)
    share = (bottom - top) * (right - left) / (height * width)
    return Mix(1 - share, (top, bottom, left, right))


def partners(count: int, device: torch.device) -> torch.Tensor:
    """int64 (count,): 2j and 2j + 1 are each other's partner, an odd last one its own.

    timm pairs first with last instead, which would depend on how a batch is cut up.
    """
    index = torch.arange(count, device=device)
    return (index ^ 1).clamp_(max=count - 1)


def mix_images(images: torch.Tensor, mix: Mix) -> torch.Tensor:
    """(B, 3, H, W) mixed with their partners."""
    if mix.kept == 1:
        return images
    other = images[partners(len(images), images.device)]
    if mix.box is None:
        return images * mix.kept + other * (1 - mix.kept)
    top, bottom, left, right = mix.box
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
    return mixed


def soft_targets(labels: torch.Tensor, mix: Mix, classes: int, smoothing: float) -> torch.Tensor:
    """labels int64 (B,) -> float32 (B, classes), smoothed, then mixed with the partners'."""
    off = smoothing / classes
    targets = torch.full((len(labels), classes), off, device=labels.device)
    targets.scatter_(1, labels.view(-1, 1), 1 - smoothing + off)
    return targets * mix.kept + targets[partners(len(labels), labels.device)] * (1 - mix.kept)
