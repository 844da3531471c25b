"""Decoders: sizes at paper scale, initialisation, and MILAN's against a plain reference."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import methods
from evals.segmentation import Segmentation
from methods.networks.decoders import select
from methods.networks.encoders import Encoded, Student
from methods.networks.pretrainer import Pretrainer
from methods.networks.prompting import PromptingDecoder
from methods.parts.decoder import Output, PatchAggregation, Prompting, Transformer
from methods.parts.encoder import Beit, ViT
from methods.values import with_fields

# What the targets ask of frozen networks at paper scale is their sizes only.
PAPER: dict[str, Any] = {
    "clip": SimpleNamespace(widths={"raw": 768, "normalised": 768, "projected": 512}),
    "vqkd": SimpleNamespace(size=8192),
    "dalle": SimpleNamespace(size=8192),
}
PARTS = ("encoder", "decoder")
SIZE = {"width": 1024, "depth": 24, "heads": 16}
BEITS = ("beit", "beitv2", "maskdistill", "simmim")
OFFICIAL = {
    # elements and tensors of the official state dict; MAE from its own sizes.
    "milan": (111_776_512, 270),
    "beitv2": (106_143_056, 219),  # 220 with the index, which timm does not save
    "mae": (111_907_840, 254),
}


def elements(module: nn.Module) -> int:
    return sum(each.numel() for each in module.state_dict().values())


@pytest.mark.parametrize("name", OFFICIAL)
def test_sizes_at_paper_scale(name: str) -> None:
    with torch.device("meta"):
        network = Pretrainer(methods.get(name), PAPER)
    assert (elements(network), len(network.state_dict())) == OFFICIAL[name]


def test_sizes_of_milans_parts() -> None:
    with torch.device("meta"):
        network = Pretrainer(methods.get("milan"), PAPER)
    assert elements(network.encoder) == 85_798_656
    assert elements(network.decoder) == 25_977_856
    trainable = sum(each.numel() for each in network.parameters() if each.requires_grad)
    assert trainable == 111_524_352


@pytest.mark.parametrize("name", methods.names())
def test_large_sizes(name: str) -> None:
    changes = methods.schedules(name)["large"]
    mine = {path: each for path, each in changes.items() if path.split(".")[0] in PARTS}
    method = with_fields(methods.get(name), mine, name)
    method.check()
    with torch.device("meta"):
        network = Pretrainer(method, PAPER)
    blocks = elements(network.encoder.model.blocks)
    # Two LayerScales; and BEiT's keys have no bias.
    widths = 2 * (name in BEITS or name == "cae") - (name in BEITS)
    assert blocks == 24 * (12 * 1024**2 + 13 * 1024) + 24 * 1024 * widths
    assert network.decoder.early_layer in (None, 21)
    assert method.encoder.describe() == "ViT-L/16"


@pytest.mark.parametrize("name", methods.names())
def test_large_protocols(name: str) -> None:
    """The feature pyramid of 24 blocks, and rates that decay more slowly than over 12."""
    changes = {**methods.evaluations(name).get("segmentation", {})}
    for path, each in methods.schedules(name)["large"].items():
        kind, _, rest = path.partition(".")
        if kind == "segmentation":
            changes[rest] = each
    encoder = Beit(**SIZE) if name in BEITS else ViT(**SIZE)
    task = with_fields(Segmentation(encoder), changes, name)
    assert task.taken(24) == (7, 11, 15, 23) and task.channels == 1024
    assert task.optimisation.layer_decay >= 0.75
    assert methods.schedules(name)["large"]["finetune.optimisation.layer_decay"] >= 0.75
    assert methods.schedules(name)["large"]["finetune.drop_path"] == 0.2


def tokens_and_order(student: Student, hidden: int = 27) -> tuple[Encoded, Tensor]:
    torch.manual_seed(1)
    mask = torch.stack([torch.randperm(36) < hidden for _ in range(2)])
    return student(torch.randn(2, 3, 48, 48), mask), mask


def tiny_vit() -> Student:
    torch.manual_seed(0)
    return ViT(image=48, patch=8, width=32, depth=2, heads=2).build()


def reference_prompting(
    decoder: PromptingDecoder, encoded: Encoded, mask: Tensor, heads: int
) -> Tensor:
    """MILAN's decoder for one image at a time, step by step as its source computes it."""
    results = []
    embedded = decoder.embed(encoded.norm(encoded.tokens))
    for image in range(len(mask)):
        hidden_at = mask[image].nonzero().flatten() + 1
        visible_at = (~mask[image]).nonzero().flatten() + 1
        full = decoder.mask_token[0].repeat(37, 1)
        full[0], full[visible_at] = embedded[image, 0], embedded[image, 1:]
        full = full + decoder.pos_embed[0]
        hidden = full[hidden_at]
        for block in decoder.blocks:
            normed = block.norm1(hidden)
            sequence = full.clone()
            sequence[hidden_at] = normed
            width = sequence.shape[1]
            key = sequence @ block.attn.kv.weight[:width].T + block.attn.kv.bias[:width]
            value = sequence @ block.attn.kv.weight[width:].T + block.attn.kv.bias[width:]
            query = block.attn.q(normed)
            mixed = []
            for head in range(heads):
                part = slice(head * width // heads, (head + 1) * width // heads)
                logits = query[:, part] @ key[:, part].T / math.sqrt(width // heads)
                mixed.append(logits.softmax(-1) @ value[:, part])
            hidden = hidden + block.attn.proj(torch.cat(mixed, 1))
            hidden = hidden + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(hidden))))
        full = full.clone()
        full[hidden_at] = hidden
        results.append(decoder.pred(decoder.norm(full)))
    return torch.stack(results)


def test_prompting_is_milans() -> None:
    student = tiny_vit()
    decoder = Prompting(16, 3, 2).build(student, {"tokens": Output(20, "all")})
    for each in decoder.parameters():
        nn.init.normal_(each, std=0.2)
    encoded, mask = tokens_and_order(student)
    found = decoder(encoded)["tokens"]
    torch.testing.assert_close(found, reference_prompting(decoder, encoded, mask, 2))
    found.square().sum().backward()
    gradients = [each.grad.clone() for each in decoder.parameters()]
    decoder.zero_grad()
    encoded, mask = tokens_and_order(student)
    reference_prompting(decoder, encoded, mask, 2).square().sum().backward()
    for each, gradient in zip(decoder.parameters(), gradients, strict=True):
        torch.testing.assert_close(each.grad, gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("value", [Prompting(16, 2, 2), Transformer(16, 2, 2)])
def test_rows_are_those_of_the_full_sequence(value: Prompting | Transformer) -> None:
    student = tiny_vit()
    outputs = {}
    for where in ("all", "patches", "hidden", "visible"):
        torch.manual_seed(2)
        decoder = value.build(student, {"tokens": Output(20, where)})
        encoded, mask = tokens_and_order(student)
        outputs[where] = decoder(encoded)["tokens"]
    assert outputs["all"].shape == (2, 37, 20)
    for where in ("patches", "hidden", "visible"):
        torch.testing.assert_close(outputs[where], select(outputs["all"], mask, where))
    assert outputs["hidden"].shape == (54, 20)


def test_transformer_restores_the_order() -> None:
    """Without blocks each position must come out as its own token."""
    student = tiny_vit()
    decoder = Transformer(16, 1, 2).build(student, {"tokens": Output(20, "all")})
    decoder.blocks = nn.ModuleList()
    encoded, mask = tokens_and_order(student)
    found = decoder(encoded)["tokens"]
    embedded = decoder.embed(encoded.norm(encoded.tokens))
    for image in range(2):
        full = decoder.mask_token[0].repeat(37, 1)
        visible_at = (~mask[image]).nonzero().flatten() + 1
        full[0], full[visible_at] = embedded[image, 0], embedded[image, 1:]
        expected = decoder.pred(decoder.norm(full + decoder.pos_embed[0]))
        torch.testing.assert_close(found[image], expected)


def aggregation(shared: bool = True, drop_path: float = 0.0) -> tuple[Student, Any]:
    torch.manual_seed(0)
    student = Beit(48, 8, 96, 4, 2, drop_path=drop_path).build()
    output = Output(20, "hidden")
    value = PatchAggregation(early_layer=2, depth=2, shared_head=shared)
    return student, value.build(student, {"tokens": output, "aggregated": output})


def test_aggregation_sees_the_early_patches_and_the_last_class() -> None:
    student, decoder = aggregation()
    mask = torch.zeros(2, 36, dtype=torch.bool)
    mask[:, :14] = True
    encoded = student(torch.randn(2, 3, 48, 48), mask, decoder.early_layer)
    mixed = torch.cat([encoded.tokens[:, :1], encoded.early[:, 1:]], 1)
    for block in decoder.blocks:
        mixed = block(mixed, shared_rel_pos_bias=student.model.rel_pos_bias())
    found = decoder(encoded)
    rows = decoder.head(student.model.norm(mixed))[:, 1:15].flatten(0, 1)
    torch.testing.assert_close(found["aggregated"], rows)
    rows = decoder.head(student.model.norm(encoded.tokens))[:, 1:15].flatten(0, 1)
    torch.testing.assert_close(found["tokens"], rows)


def test_aggregation_blocks_start_as_pytorchs_then_scaled() -> None:
    """As its source: Kaiming-uniform, then proj and fc2 over sqrt(2 (l + i + 1))."""
    _, decoder = aggregation()
    decoder.requires_grad_(False)
    bound = 1 / math.sqrt(96)
    for number, block in enumerate(decoder.blocks):
        assert float(block.attn.qkv.weight.abs().max()) == pytest.approx(bound, rel=0.02)
        assert block.mlp.fc1.bias.any()
        scaled = bound / math.sqrt(2 * (2 + number + 1))
        assert float(block.attn.proj.weight.abs().max()) == pytest.approx(scaled, rel=0.02)
    assert float(decoder.head.weight.abs().max()) <= 0.02


def test_aggregation_continues_the_drop_path() -> None:
    _, decoder = aggregation(drop_path=0.3)
    rates = [block.drop_path1.drop_prob for block in decoder.blocks]
    assert rates == pytest.approx([0.2, 0.3])


def test_aggregation_with_a_head_of_its_own() -> None:
    _, decoder = aggregation(shared=False)
    assert {name for name, _ in decoder.named_parameters() if name.startswith("own")} == {
        "own.0.weight",
        "own.0.bias",
        "own.1.weight",
        "own.1.bias",
    }


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: Transformer(width=510, heads=2), "width"),
        (lambda: Prompting(heads=7), "heads"),
        (lambda: Prompting(depth=0), "depth"),
        (lambda: PatchAggregation(early_layer=0), "early_layer"),
    ],
)
def test_wrong_values_are_named(make: object, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make()  # type: ignore[operator]
