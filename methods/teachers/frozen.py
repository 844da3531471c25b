"""What frozen networks share: they stay in eval mode, and teachers normalise images as asked."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.parts.augment import mean_std


class Frozen(nn.Module):
    """A network that is never trained."""

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode whatever the network around it does."""
        return super().train(False)


class FrozenTeacher(Frozen):
    """Base of the teachers. card: with "mean" and "std" of the images that one was trained on."""

    def __init__(self, card: dict[str, Any]) -> None:
        super().__init__()
        self.card = card
        known = {name: mean_std(name) for name in ("imagenet", "clip")}
        for name, pair in {**known, "own": (card["mean"], card["std"])}.items():
            for part, values in zip(("mean", "std"), pair, strict=True):
                tensor = torch.tensor(tuple(values), dtype=torch.float32).view(1, 3, 1, 1)
                self.register_buffer(f"{name}_{part}", tensor, persistent=False)

    def prepared(self, images: Tensor, statistics: str, size: tuple[int, int]) -> Tensor:
        """Images (B, 3, H, W) in [0, 1], normalised by its "own" statistics or by those named.

        Those of another size than the teacher's are resized (bicubic), as MaskAlign and dBOT do for
        CLIP L/14 at 196.
        """
        mean = self.get_buffer(f"{statistics}_mean")
        images = (images.float() - mean) / self.get_buffer(f"{statistics}_std")
        if tuple(images.shape[-2:]) != size:
            images = F.interpolate(images, size=size, mode="bicubic", align_corners=False)
        return images


def no_autocast(tensor: Tensor) -> torch.autocast:
    """Full precision where `tensor` is."""
    return torch.autocast(tensor.device.type, enabled=False)
