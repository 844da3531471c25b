"""CAE: the regressor against a plain one, and the latents that it aligns with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_methods import loader_batch, tiny
from torch import Tensor, nn

import methods
from methods.cae import LatentRegressor
from methods.networks.cae import RegressorBlock
from methods.networks.pretrainer import MaskedModelling


def reference(
    block: RegressorBlock, hidden: Tensor, seen: Tensor, where: Tensor, seen_where: Tensor
) -> Tensor:
    """One image, (H, D) and (V, D), as the source's RegressorBlock."""
    context, places = torch.cat([seen, hidden]), torch.cat([seen_where, where])
    query, key = block.q(block.norm_q(hidden + where)), block.k(block.norm_k(context + places))
    value, width = block.v(block.norm_v(context)), hidden.shape[1] // block.heads
    heads = zip(*(each.split(width, 1) for each in (query, key, value)), strict=True)
    mixed = torch.cat([(q @ k.T / width**0.5).softmax(-1) @ v for q, k, v in heads], 1)
    hidden = block.norm_mlp(hidden + block.gamma_1 * block.proj(mixed))
    return hidden + block.gamma_2 * block.mlp(hidden)


def test_regressor_block() -> None:
    torch.manual_seed(0)
    block = RegressorBlock(16, heads=2, layer_scale=0.1, drop_path=0.0)
    for each in block.parameters():
        nn.init.normal_(each, std=0.3)
    sizes = ((2, 5, 16), (2, 7, 16), (2, 5, 16), (2, 7, 16))
    inputs = [torch.randn(size) for size in sizes]
    found = block(*inputs)
    for image in range(2):
        expected = reference(block, *(each[image] for each in inputs))
        torch.testing.assert_close(found[image], expected, rtol=1e-4, atol=1e-4)


def test_latents_are_the_encoders_own(frozen: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = MaskedModelling(tiny("cae"), frozen)
    network.module.eval()
    with torch.no_grad():
        [micro] = network.prepare(0, [loader_batch(network.method)])
        student, mask = network.pretrainer.encoder, micro["mask"]
        encoded = student(micro["image"], ~mask)
        expected = encoded.norm(encoded.tokens)[:, 1:].flatten(0, 1)
    torch.testing.assert_close(micro["targets"][1], expected)
    assert not micro["targets"][1].requires_grad
    assert micro["targets"][0].shape == (int(mask.sum()),)


def test_the_alignment_weighs_two(frozen: dict[str, Any]) -> None:
    network = MaskedModelling(tiny("cae"), frozen)
    with torch.no_grad():
        [micro] = network.prepare(0, [loader_batch(network.method)])
        losses = network.module(micro)
    torch.testing.assert_close(losses["loss"], losses["loss_tokens"] + 2 * losses["loss_latents"])


def test_values() -> None:
    assert methods.get("cae").masking.count(196) == 98
    with pytest.raises(ValueError, match="decoder_depth"):
        LatentRegressor(decoder_depth=0)
