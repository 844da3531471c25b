"""Targets against plain computations, and that a frozen network runs once for a micro-batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_methods import loader_batch, split, tiny

from methods.networks.pretrainer import MaskedModelling
from methods.networks.targets import Inputs
from methods.parts.encoder import ViT
from methods.parts.target import Codes, Features, Pixels

ENCODER = ViT(image=48, patch=8, width=32, depth=1, heads=2)


def inputs(frozen: dict[str, Any], seed: int = 0, size: int = 3) -> Inputs:
    plain = torch.rand(size, 3, 48, 48, generator=torch.Generator().manual_seed(seed))
    return Inputs((plain - 0.45) / 0.22, plain, {}, frozen)


def test_pixels_are_maes_patches() -> None:
    """Rows, then columns, then channels within a patch; unbiased variance + 1e-6."""
    each = inputs({})
    images = each.image.numpy()
    for normalise in (False, True):
        found = Pixels(normalise).build(ENCODER, {}).one(each, None)
        patch = images[1, :, 16:24, 40:48].transpose(1, 2, 0).reshape(-1)
        if normalise:
            patch = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
        assert found.shape == (3, 36, 192)
        np.testing.assert_allclose(found[1, 2 * 6 + 5].numpy(), patch, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tokens", ["raw", "normalised", "projected"])
def test_features_are_the_teachers_tokens(frozen: dict[str, Any], tokens: Any) -> None:
    each = inputs(frozen)
    target = Features(tokens=tokens, statistics="imagenet").build(ENCODER, frozen)
    found = target.one(each, None)
    expected = getattr(frozen["clip"](each.plain, "imagenet"), tokens)
    torch.testing.assert_close(found, expected)
    assert found.shape == (3, 37, target.width)


def test_layer_normalised_features(frozen: dict[str, Any]) -> None:
    each = inputs(frozen)
    found = Features(normalise="layer").build(ENCODER, frozen).one(each, None)
    raw = frozen["clip"](each.plain, "clip").projected
    centred = raw - raw.mean(-1, keepdim=True)
    expected = centred / (raw.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_batch_normalisation_does_not_depend_on_micro_batches(frozen: dict[str, Any]) -> None:
    target = Features(normalise="batch").build(ENCODER, frozen)
    whole = inputs(frozen, size=4)
    halves = [Inputs(whole.image[i : i + 2], whole.plain[i : i + 2], {}, frozen) for i in (0, 2)]
    [joint] = target.joint([target.one(whole, None)])
    parts = target.joint([target.one(each, None) for each in halves])
    torch.testing.assert_close(torch.cat(parts), joint)
    rows = joint[:, 1:].flatten(0, 1)
    torch.testing.assert_close(rows.mean(0), torch.zeros(24), atol=1e-4, rtol=0)
    assert float((rows.std(0) - 1).abs().max()) < 0.05


def test_codes_are_the_tokenizers(frozen: dict[str, Any]) -> None:
    each = inputs(frozen)
    target = Codes("vqkd").build(ENCODER, frozen)
    found = target.one(each, None)
    assert target.width == 50 and torch.equal(found, frozen["vqkd"].codes(each.plain))


@pytest.mark.parametrize("name, role", [("milan", "clip"), ("beitv2", "vqkd")])
def test_a_frozen_network_runs_once(frozen: dict[str, Any], name: str, role: str) -> None:
    """MILAN's target and sampling share a pass, and so do BEiT v2's two objectives."""
    method = tiny(name)
    trainable = MaskedModelling(method, frozen)
    calls = []
    network = frozen[role]
    inner = network.network if role == "vqkd" else network
    original = inner.codes if role == "vqkd" else None
    if original:
        inner.codes = lambda images: calls.append(1) or original(images)
        handle = None
    else:
        handle = inner.register_forward_hook(lambda *_: calls.append(1))
    try:
        with torch.no_grad():
            trainable.prepare(0, split(loader_batch(method), 2))
    finally:
        if handle:
            handle.remove()
        else:
            del inner.codes
    assert len(calls) == 2


def test_the_second_view_is_the_frozen_networks(frozen: dict[str, Any]) -> None:
    method = tiny("beitv2")
    trainable = MaskedModelling(method, frozen)
    batch = loader_batch(method)
    batch["second"] = batch["image"].flip(-1)
    [micro] = trainable.prepare(0, [batch])
    codes = frozen["vqkd"].codes(batch["second"].float() / 255)
    assert torch.equal(micro["targets"][0], codes[micro["mask"]])
