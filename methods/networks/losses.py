"""Losses in float32, whatever the precision around them; each returns the mean over its rows."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cosine(prediction: Tensor, target: Tensor, scale: float = 2.0) -> Tensor:
    """Mean over rows of scale (1 - cos), for (..., C) both."""
    return scale * (1 - F.cosine_similarity(prediction.float(), target.float(), dim=-1)).mean()


def smooth_l1(prediction: Tensor, target: Tensor, beta: float = 1.0) -> Tensor:
    """Huber's loss over beta, mean over rows and channels, for (..., C) both."""
    return F.smooth_l1_loss(prediction.float(), target.float(), beta=beta)


def l1(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference, for (..., C) both."""
    return F.l1_loss(prediction.float(), target.float())


def l2(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference, for (..., C) both."""
    return F.mse_loss(prediction.float(), target.float())


def cross_entropy(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of logits (..., C) with class numbers (...)."""
    return F.cross_entropy(prediction.float().flatten(0, -2), target.flatten())
