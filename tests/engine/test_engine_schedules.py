"""Rates against the formulas of the original code, value by value."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.optim import LinearLR, PolyLR

from methods.errors import InputError
from methods.parts.optimisation import Optimisation
from methods.values import from_plain, to_plain

IMAGENET = 1_281_167


def rates(value: Optimisation, images: int) -> list[float]:
    return [value.rate(step, images) for step in range(value.steps(images))]


def test_mae() -> None:
    """`util/lr_sched.py` with `blr * batch / 256`."""
    value = Optimisation(20, 64, 1.5e-4, per=256, warmup_epochs=2, minimum_rate=1e-6)
    per_epoch, peak = 1000 // 64, 1.5e-4 * 64 / 256
    expected = []
    for epoch in range(20):
        for iteration in range(per_epoch):
            e = iteration / per_epoch + epoch
            if e < 2:
                expected.append(peak * e / 2)
            else:
                cosine = 0.5 * (1.0 + math.cos(math.pi * (e - 2) / (20 - 2)))
                expected.append(1e-6 + (peak - 1e-6) * cosine)
    assert rates(value, 1000) == pytest.approx(expected, rel=1e-12)


def test_mae_published_rate() -> None:
    value = Optimisation(400, 4096, 1.5e-4, per=256, warmup_epochs=40)
    assert value.peak == pytest.approx(2.4e-3)
    assert value.steps(IMAGENET) == 400 * 312
    assert value.rate(40 * 312, IMAGENET) == pytest.approx(2.4e-3)
    assert value.rate(0, IMAGENET) == 0


@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_beit(warmup: int) -> None:
    """`utils.cosine_scheduler`: a table, the warm-up's ends included."""
    value = Optimisation(10, 64, 1.5e-3, warmup_epochs=warmup, minimum_rate=1e-5, warmup="table")
    per_epoch = 1000 // 64
    table = np.linspace(0, 1.5e-3, warmup * per_epoch)
    places = np.arange(10 * per_epoch - warmup * per_epoch)
    cosine = [
        1e-5 + 0.5 * (1.5e-3 - 1e-5) * (1 + math.cos(math.pi * i / len(places))) for i in places
    ]
    assert rates(value, 1000) == pytest.approx([*table, *cosine], rel=1e-12)


def test_simmim() -> None:
    """`MultiStepLRScheduler`: linear from 5e-7, then a tenth from epoch 7 on."""
    value = Optimisation(
        8, 100, 1e-4, per=50, warmup_epochs=2, warmup_start=5e-3,
        schedule="step", decay_epochs=(7,),
    )  # fmt: skip
    first, peak = 1e-6, 2e-4
    expected = [first + t * (peak - first) / 20 for t in range(20)]
    expected += [peak] * 50 + [peak * 0.1] * 10
    assert rates(value, 1000) == pytest.approx(expected, rel=1e-12)


def test_mmengine_segmentation() -> None:
    """The real LinearLR and PolyLR."""
    value = Optimisation(
        1, 16, 1e-4, iterations=40, warmup_iterations=7, warmup="table", warmup_start=1e-6,
        schedule="poly",
    )  # fmt: skip
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    schedulers = [
        LinearLR(optimizer, start_factor=1e-6, begin=0, end=7, by_epoch=False),
        PolyLR(optimizer, eta_min=0.0, power=1.0, begin=7, end=40, by_epoch=False),
    ]
    expected = []
    for _ in range(40):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    assert rates(value, 20_210) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_mmcv_segmentation() -> None:
    """mmcv 1.x: a polynomial from update 0, times `1 - (1 - t / warmup) * (1 - ratio)`."""
    value = Optimisation(
        1, 16, 5e-5, iterations=40, warmup_iterations=7, warmup="product", warmup_start=1e-6,
        schedule="poly", power=0.9, minimum_rate=1e-7,
    )  # fmt: skip
    regular = [(5e-5 - 1e-7) * (1 - t / 40) ** 0.9 + 1e-7 for t in range(40)]
    expected = [
        lr * (1 - (1 - t / 7) * (1 - 1e-6)) if t < 7 else lr for t, lr in enumerate(regular)
    ]
    assert rates(value, 20_210) == pytest.approx(expected, rel=1e-12)


def test_set_smaller_than_a_batch() -> None:
    value = Optimisation(10, 200, 1.0, schedule="constant")
    assert value.steps(50) == 2
    assert rates(value, 50) == [1.0, 1.0]


def test_plain_data() -> None:
    value = Optimisation(1, 2, 0.1, betas=(0.9, 0.98), schedule="step", decay_epochs=(0.5,))
    assert from_plain(Optimisation, to_plain(value), "optimisation") == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "optimisation: batch must be at least 1, not 0"),
        ({"epochs": -1}, "epochs must be positive"),
        ({"learning_rate": 0}, "learning_rate must be positive"),
        ({"warmup_epochs": 11}, "warm-up must be shorter than the training"),
        ({"iterations": 5, "warmup_iterations": 6}, "warm-up must be shorter"),
        ({"schedule": "step"}, "decay_epochs belong to the schedule 'step'"),
        ({"schedule": "step", "decay_epochs": [3, 2]}, "decay_epochs must rise"),
        ({"betas": [0.9, 1.0]}, "betas and momentum"),
        ({"layer_decay": 1.5}, "layer_decay must be in"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"precision": "fp8"}, "optimisation.precision"),
    ],
)
def test_refused(change: dict[str, Any], message: str) -> None:
    plain = {"epochs": 10, "batch": 4, "learning_rate": 0.1} | change
    with pytest.raises(InputError, match=message):
        from_plain(Optimisation, plain, "optimisation")
