"""The step that trains equals a plain one, written for clarity, in its loss and every gradient.

The plain step embeds every patch, computes every block for every token by plain attention, keeps
tokens in raster order, and reads the rows of the loss at the very end.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_methods import loader_batch, tiny
from torch import Tensor

import methods
from methods.engine.attention import choose_kernels
from methods.networks.encoders import Student, run_rows
from methods.networks.pretrainer import MaskedModelling, Pretrainer
from methods.parts.encoder import Beit, ViT

NAMES = [name for name in methods.names() if name not in ("cae", "cmae")]


def attention(block: Any, tokens: Tensor, bias: Tensor | None) -> Tensor:
    """Every token's attention to every token, (B, N, D)."""
    layer = block.attn
    offset = layer.qkv.bias
    if offset is None:
        offset = torch.cat([layer.q_bias, layer.k_bias, layer.v_bias])
    qkv = tokens @ layer.qkv.weight.T + offset
    query, key, value = (
        each.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for each in qkv.chunk(3, dim=-1)
    )
    logits = query @ key.transpose(-2, -1) * layer.scale
    mixed = (logits if bias is None else logits + bias).softmax(-1) @ value
    out: Tensor = layer.proj(mixed.transpose(1, 2).flatten(2))
    return out


def block_in_full(block: Any, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
    """A pre-norm block with LayerScale; drop path is off in these tests."""
    first, second = getattr(block, "gamma_1", None), getattr(block, "gamma_2", None)
    mixed = attention(block, block.norm1(tokens), bias)
    tokens = tokens + (mixed if first is None else first * mixed)
    wide = block.mlp(block.norm2(tokens))
    return tokens + (wide if second is None else second * wide)


def encode(student: Student, images: Tensor, mask: Tensor, early: int | None) -> tuple[Tensor, Any]:
    """The last block's tokens (and those after block `early`): with all patches, or the visible."""
    model = student.model
    patches = model.patch_embed(images)
    if student.mask_token is not None:
        patches = torch.where(mask[..., None], student.mask_token, patches)
    first = model.cls_token.expand(len(images), -1, -1)
    tokens = torch.cat([first, patches], dim=1)
    if model.pos_embed is not None:
        tokens = tokens + model.pos_embed
    if student.mask_token is None:
        shown = torch.cat([torch.ones_like(mask[:, :1]), ~mask], dim=1)
        tokens = tokens[shown].view(len(images), -1, student.width)
    bias, kept = student.position_bias(), None
    for number, block in enumerate(model.blocks, start=1):
        tokens = block_in_full(block, tokens, bias)
        kept = tokens if number == early else kept
    return tokens, kept


def in_raster_order(decoder: Any, seen: Tensor, mask: Tensor) -> Tensor:
    """(B, 1+N, W): embedded visible tokens and mask tokens at their places, with positions."""
    embedded = decoder.embed(seen)
    full = decoder.mask_token.expand(len(mask), 1 + mask.shape[1], -1).clone()
    shown = torch.cat([torch.ones_like(mask[:, :1]), ~mask], dim=1)
    full[shown] = embedded.flatten(0, 1)
    return full + decoder.pos_embed


def predictions(network: Pretrainer, micro: dict[str, Any]) -> dict[str, Tensor]:
    """What the decoder predicts for all patches, (B, 1+N, C)."""
    decoder: Any = network.decoder
    tokens, early = encode(network.encoder, micro["image"], micro["mask"], decoder.early_layer)
    norm = network.encoder.model.norm
    kind = type(decoder).__name__
    if kind == "LinearHeadDecoder":
        return {"tokens": decoder.head(norm(tokens))}
    if kind == "PatchAggregationDecoder":
        mixed = torch.cat([tokens[:, :1], early[:, 1:]], dim=1)
        for block in decoder.blocks:
            mixed = block_in_full(block, mixed, network.encoder.position_bias())
        return {"tokens": decoder.head(norm(tokens)), "aggregated": decoder.head(norm(mixed))}
    full = in_raster_order(decoder, norm(tokens), micro["mask"])
    if kind == "TransformerDecoder":
        for block in decoder.blocks:
            full = block_in_full(block, full)
        return {"tokens": decoder.pred(decoder.norm(full))}
    assert kind == "PromptingDecoder"
    return {"tokens": decoder.pred(decoder.norm(prompted(decoder, full, micro["mask"])))}


def prompted(decoder: Any, full: Tensor, mask: Tensor) -> Tensor:
    """MILAN's decoder, image by image: hidden tokens attend to the raw prompt and their norms."""
    done = []
    for tokens, hidden in zip(full, mask, strict=True):
        where = torch.cat([hidden.new_zeros(1), hidden])
        tokens = tokens.clone()
        for block in decoder.blocks:
            context = torch.where(where[:, None], block.norm1(tokens), tokens)
            heads = block.attn.heads
            query = block.attn.q(context[where]).unflatten(-1, (heads, -1)).transpose(0, 1)
            key, value = (
                each.unflatten(-1, (heads, -1)).transpose(0, 1)
                for each in block.attn.kv(context).chunk(2, dim=-1)
            )
            weights = (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(-1)
            rows = tokens[where] + block.attn.proj((weights @ value).transpose(0, 1).flatten(1))
            rows = rows + block.mlp(block.norm2(rows))
            tokens = tokens.index_put((where,), rows)
        done.append(tokens)
    return torch.stack(done)


def reference_loss(network: Pretrainer, micro: dict[str, Any]) -> Tensor:
    found = predictions(network, micro)
    total = torch.zeros(())
    for objective, loss, target in zip(
        network.objectives, network.losses, micro["targets"], strict=True
    ):
        rows = found[objective.prediction]
        if objective.where == "hidden":
            rows = rows[:, 1:][micro["mask"]]
        total = total + objective.weight * loss(rows, target)
    return total


def gradients(network: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    loss.backward()
    return {
        name: item.grad.clone()
        for name, item in network.named_parameters()
        if item.grad is not None
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_loss_and_gradients_are_those_of_the_plain_step(
    name: str, precision: str, frozen: dict[str, Any]
) -> None:
    """Whichever kernel computes attention: `precision` only chooses it here."""
    torch.manual_seed(0)
    trainable = MaskedModelling(tiny(name), frozen)
    network = trainable.pretrainer.eval()
    choose_kernels(network, torch.device("cpu"), precision)
    for item in network.parameters():  # biases and relative positions begin at zero
        if item.requires_grad:
            item.data.add_(0.05 * torch.randn(item.shape))
    with torch.no_grad():
        micro = trainable.prepare(0, [loader_batch(trainable.method)])[0]
    fast, plain = network(micro)["loss"], reference_loss(network, micro)
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-6)
    found, expected = gradients(network, fast), gradients(network, plain)
    assert found.keys() == expected.keys() and len(found) > 20
    for each, gradient in expected.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[each], gradient, rtol=1e-3, atol=1e-4 * scale + 1e-8)


@pytest.mark.parametrize("value", [ViT(48, 8, 32, 2, 2), Beit(48, 8, 32, 2, 2, drop_path=0.5)])
def test_rows_of_a_block_are_those_of_the_whole_block(value: Any) -> None:
    """Drop path draws the same numbers for the same images."""
    torch.manual_seed(0)
    student = value.build().train()
    bias = student.position_bias()
    bias = None if bias is None else torch.randn_like(bias)
    tokens, block = torch.randn(6, 37, 32), student.model.blocks[-1]
    torch.manual_seed(1)
    whole = block(tokens) if bias is None else block(tokens, shared_rel_pos_bias=bias)
    torch.manual_seed(1)
    rows = run_rows(
        block, tokens, lambda each: each[:, 5:9], None if bias is None else bias[:, 5:9]
    )
    torch.testing.assert_close(rows, whole[:, 5:9])


def test_a_mask_of_varying_count_keeps_the_whole_block(frozen: dict[str, Any]) -> None:
    assert tiny("beit").masking.exact is False
    assert not MaskedModelling(tiny("beit"), frozen).pretrainer.hidden_only
    assert all(MaskedModelling(tiny(each), frozen).pretrainer.hidden_only for each in
               ("beitv2", "maskdistill", "simmim"))  # fmt: skip
