"""Losses against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from methods.parts.loss import L1, L2, Cosine, CrossEntropy, Loss, SmoothL1

RANDOM = np.random.default_rng(0)
P, T = RANDOM.normal(size=(2, 3, 5, 7))
D = P - T


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def huber(d: np.ndarray, beta: float) -> np.ndarray:
    return np.where(abs(d) < beta, d**2 / (2 * beta), abs(d) - beta / 2)


@pytest.mark.parametrize(
    "loss, expected",
    [
        (Cosine(), (2 - 2 * cosine(P, T)).mean()),
        (Cosine(1.0), (1 - cosine(P, T)).mean()),
        (SmoothL1(1.0), huber(D, 1.0).mean()),
        (SmoothL1(2.0), huber(D, 2.0).mean()),
        (L1(), abs(D).mean()),
        (L2(), (D**2).mean()),
    ],
)
def test_regression_losses(loss: Loss, expected: float) -> None:
    found = loss.build()(torch.from_numpy(P), torch.from_numpy(T))
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_cross_entropy() -> None:
    codes = RANDOM.integers(7, size=(3, 5))
    logs = np.log(np.exp(P).sum(-1)) - np.take_along_axis(P, codes[..., None], -1)[..., 0]
    found = CrossEntropy().build()(torch.from_numpy(P), torch.from_numpy(codes))
    assert float(found) == pytest.approx(logs.mean(), rel=1e-5)


def test_losses_are_computed_in_single_precision() -> None:
    for loss in (Cosine(), SmoothL1(), L1(), L2()):
        half = torch.from_numpy(P).bfloat16()
        assert loss.build()(half, half + 1).dtype == torch.float32


@pytest.mark.parametrize("make", [lambda: Cosine(0.0), lambda: SmoothL1(-1.0)])
def test_wrong_values_are_refused(make: object) -> None:
    with pytest.raises(ValueError, match="above 0"):
        make()  # type: ignore[operator]
