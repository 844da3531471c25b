"""Losses between predictions and targets, as values without torch; each is a mean over its rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

LossFunction = Callable[["Tensor", Any], "Tensor"]
"""(prediction (..., C), target) -> scalar, the mean over all rows; computed in float32."""


@dataclass(frozen=True)
class Loss:
    """Base of the losses."""

    def describe(self) -> str:
        """The name in tables."""
        return type(self).__name__

    def build(self) -> LossFunction:
        """The function of predictions (..., C) and targets of the same shape, to a scalar."""
        raise NotImplementedError


@dataclass(frozen=True)
class Cosine(Loss):
    """scale x (1 - cos) for each row; 2 is the squared distance of unit vectors (MILAN)."""

    scale: float = 2.0

    def __post_init__(self) -> None:
        if self.scale <= 0:
            raise ValueError(f"scale must be above 0, not {self.scale}")

    def describe(self) -> str:
        return f"{self.scale:g} - {self.scale:g} cos"

    def build(self) -> LossFunction:
        from methods.networks import losses

        return lambda prediction, target: losses.cosine(prediction, target, self.scale)


@dataclass(frozen=True)
class SmoothL1(Loss):
    """d^2 / (2 beta) where |d| < beta, else |d| - beta / 2; mean over rows and channels."""

    beta: float = 1.0

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta must be above 0, not {self.beta}")

    def describe(self) -> str:
        return f"smooth L1 (beta {self.beta:g})"

    def build(self) -> LossFunction:
        from methods.networks import losses

        return lambda prediction, target: losses.smooth_l1(prediction, target, self.beta)


@dataclass(frozen=True)
class L1(Loss):
    """Mean absolute difference over rows and channels."""

    def build(self) -> LossFunction:
        from methods.networks import losses

        return losses.l1


@dataclass(frozen=True)
class L2(Loss):
    """Mean squared difference over rows and channels."""

    def describe(self) -> str:
        return "MSE"

    def build(self) -> LossFunction:
        from methods.networks import losses

        return losses.l2


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Cross-entropy of logits (..., C) with class numbers (...), mean over rows."""

    def describe(self) -> str:
        return "cross-entropy"

    def build(self) -> LossFunction:
        from methods.networks import losses

        return losses.cross_entropy
