"""CMAE: contrast, batch norm, moving averages and the shifted views."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_methods import loader_batch, tiny

from methods.cmae import InfoNCE, MomentumBranch, PixelAndFeature, ShiftedPair
from methods.networks.cmae import GlobalBatchNorm
from methods.networks.pretrainer import MaskedModelling


def test_contrast_against_numpy() -> None:
    random = np.random.default_rng(0)
    prediction, target = random.normal(size=(2, 6, 4))
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (prediction, target)]
    logits = unit[0] @ unit[1].T / 0.1
    expected = 2 * 0.1 * (np.log(np.exp(logits).sum(1)) - np.diag(logits)).mean()
    loss = InfoNCE(0.1).build()
    found = loss(torch.from_numpy(prediction), torch.from_numpy(target))
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_batch_norm_is_the_training_one() -> None:
    torch.manual_seed(0)
    norm, rows = GlobalBatchNorm(5), torch.randn(8, 5) * 3 + 1
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    expected = F.batch_norm(rows, None, None, norm.weight, norm.bias, training=True, eps=1e-6)
    torch.testing.assert_close(norm(rows), expected, rtol=1e-4, atol=1e-5)


def test_the_target_follows_slowly(frozen: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = MaskedModelling(tiny("cmae"), frozen)
    target, student = network.pretrainer.targets[1], network.pretrainer
    assert not any(each.requires_grad for each in target.parameters())
    before = target.encoder.model.cls_token.clone()
    torch.testing.assert_close(before, student.encoder.model.cls_token.data)
    with torch.no_grad():
        student.encoder.model.cls_token.add_(1.0)
    network.after_step(0)
    torch.testing.assert_close(target.encoder.model.cls_token, before + 0.004)
    names = [name for name in network.module.state_dict() if name.startswith("targets.1.")]
    assert any("projector" in name for name in names)  # so that a checkpoint holds it


def test_the_target_sees_the_second_view_whole(frozen: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = MaskedModelling(tiny("cmae"), frozen)
    batch = loader_batch(network.method)
    with torch.no_grad():
        [micro] = network.prepare(0, [batch])
        target, student = network.pretrainer.targets[1], network.pretrainer.encoder
        second = batch["second"].float() / 255
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        second = (second - mean[:, None, None]) / std[:, None, None]
        encoded = student(second, torch.zeros(8, 36, dtype=torch.bool))
        expected = target.projector(encoded.tokens[:, 1:].mean(1))
    torch.testing.assert_close(micro["targets"][1], expected, rtol=1e-4, atol=1e-5)


def test_views_are_shifted_and_repeatable() -> None:
    ramp = np.add.outer(np.arange(300), np.arange(300)) % 256
    image = Image.fromarray(np.stack([ramp] * 3, -1).astype(np.uint8))
    views = ShiftedPair(size=224).build()
    first, again = (views(image, np.random.default_rng(3)) for _ in range(2))
    assert first["image"].shape == first["second"].shape == (3, 224, 224)
    assert all(torch.equal(first[each], again[each]) for each in first)
    assert any(
        not torch.equal(view["image"], view["second"])
        for view in (views(image, np.random.default_rng(seed)) for seed in range(3))
    )
    small = ShiftedPair(size=48).build()(image, np.random.default_rng(0))
    assert small["second"].shape == (3, 48, 48)


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: InfoNCE(0.0), "temperature"),
        (lambda: MomentumBranch(momentum=1.0), "momentum"),
        (lambda: PixelAndFeature(feature_depth=0), "feature_depth"),
    ],
)
def test_wrong_values_are_named(make: object, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make()  # type: ignore[operator]
