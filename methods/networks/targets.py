"""Targets: what the losses compare predictions with, computed without gradient before an update."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.engine import distributed
from methods.parts.encoder import Encoder
from methods.parts.target import Features


@dataclass
class Inputs:
    """One micro-batch as masks and targets see it; each frozen network runs once at most.

    image: (B, 3, H, W) normalised, the student's. plain: the same or the second view in [0, 1], for
    the frozen networks by role in `frozen`. batch: the loader's. statistics: of the student's
    images. mask: (B, N) bool, True = hidden, once it is known. seen: what the networks made of it.
    """

    image: Tensor
    plain: Tensor
    batch: Mapping[str, Any]
    frozen: Mapping[str, Any]
    statistics: str = "imagenet"
    mask: Tensor | None = None
    seen: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    def teacher(self, role: str, statistics: str) -> Any:
        """The TeacherOutput of the teacher `role` for images normalised by `statistics`."""
        network = self.frozen[role]
        if (network, statistics) not in self.seen:
            self.seen[network, statistics] = network(self.plain, statistics)
        return self.seen[network, statistics]

    def codes(self, role: str) -> Tensor:
        """Codes (B, N) int64 of the tokenizer `role`."""
        network = self.frozen[role]
        if (network,) not in self.seen:
            self.seen[network,] = network.codes(self.plain)
        codes: Tensor = self.seen[network,]
        return codes


class TargetNetwork(nn.Module):
    """Base of the targets. `width`: channels (or classes) that a prediction must have.

    `parts`: of so many tokens, see `methods.parts.decoder.Output`.
    """

    width: int
    parts: int = 1

    def one(self, inputs: Inputs, student: Any) -> Tensor:
        """The target of a micro-batch, (B, N, C), (B, 1+N, C) or codes (B, N), by itself.

        `student` is the Pretrainer, for targets that follow the network in training.
        """
        raise NotImplementedError

    def joint(self, targets: list[Tensor]) -> list[Tensor]:
        """The targets of this rank's micro-batches, with what takes the global batch to compute."""
        return targets

    def start(self, student: Any) -> None:
        """Take what is needed of the newly built Pretrainer; frozen targets need nothing."""

    def after_step(self, student: Any) -> None:
        """Follow the student after an update; frozen targets do nothing."""


class PixelTarget(TargetNetwork):
    """Patches of the normalised image, (B, N, 3 P^2); see `methods.parts.target.Pixels`."""

    def __init__(self, encoder: Encoder, normalise_patches: bool) -> None:
        super().__init__()
        self.normalise_patches = normalise_patches
        self.patch: int = encoder.patch  # type: ignore[attr-defined]
        self.width = 3 * self.patch**2

    def one(self, inputs: Inputs, student: Any) -> Tensor:
        patches = patchify(inputs.image, self.patch)
        if not self.normalise_patches:
            return patches
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return (patches - mean) / (variance + 1e-6).sqrt()


def patchify(images: Tensor, patch: int) -> Tensor:
    """Patches (B, N, P P 3) of images (B, 3, H, W): raster order, pixels before channels (MAE)."""
    images = images.unfold(2, patch, patch).unfold(3, patch, patch)  # (B, 3, rows, columns, P, P)
    return images.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)


class FeatureTarget(TargetNetwork):
    """A teacher's tokens with the class, (B, 1+N, C); see `methods.parts.target.Features`.

    Where each of the student's patches has several of them, (B, N, parts, C) without the class.
    """

    def __init__(self, value: Features, width: int, parts: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.value, self.width, self.parts, self.grid = value, width, parts, grid

    def one(self, inputs: Inputs, student: Any) -> Tensor:
        output = inputs.teacher(self.value.teacher, self.value.statistics)
        tokens: Tensor = getattr(output, self.value.tokens).float()
        if self.value.normalise == "layer":
            tokens = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
        return tokens

    def joint(self, targets: list[Tensor]) -> list[Tensor]:
        targets = batch_norm(targets) if self.value.normalise == "batch" else targets
        if self.parts == 1:
            return targets
        return [fold(each, self.grid, self.parts) for each in targets]


def fold(tokens: Tensor, grid: tuple[int, int], parts: int) -> Tensor:
    """Tokens (B, 1 + N parts, C) as (B, N, parts, C): a square of them in each patch."""
    side = math.isqrt(parts)
    squares = tokens[:, 1:].unflatten(1, (grid[0], side, grid[1], side))
    return squares.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def batch_norm(tokens: list[Tensor]) -> list[Tensor]:
    """Tokens (B, 1+N, C) of all micro-batches with the patches of the global batch standardised.

    Sums are reduced over micro-batches and ranks, so that no layout changes the statistics.
    """
    rows = torch.cat([each[:, 1:].flatten(0, 1).double() for each in tokens])
    sums = torch.stack([rows.sum(0), rows.square().sum(0), torch.full_like(rows[0], len(rows))])
    total, squares, count = distributed.all_reduce(sums)
    mean = total / count
    deviation = (squares / count - mean.square()).clamp_min(0).add(1e-5).sqrt()
    return [(each - mean.float()) / deviation.float() for each in tokens]


class CodeTarget(TargetNetwork):
    """A tokenizer's codes, (B, N); see `methods.parts.target.Codes`."""

    def __init__(self, role: str, size: int) -> None:
        super().__init__()
        self.role, self.width = role, size

    def one(self, inputs: Inputs, student: Any) -> Tensor:
        return inputs.codes(self.role)
