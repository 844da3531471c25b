"""Encoders for evaluations: strict loading, own position tables, random initialisation."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from tiny_evaluations import BEIT, VIT

from evals.encoders import build_frozen, build_trainable, features, source
from methods.engine.work import Work
from methods.errors import StageError
from methods.parts.encoder import Beit, ViT

CPU = torch.device("cpu")
IMAGES = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
Export = Callable[..., Path]


def found(folder: Path | None, encoder: Any = VIT, seed: int = 0) -> Any:
    needs = {"encoder": folder} if folder else {}
    return source(Work(Path(), needs), encoder, seed, "imagenet")


@pytest.mark.parametrize("encoder", [VIT, BEIT], ids=["ViT", "Beit"])
def test_frozen_features_are_those_of_plain_timm(encoder: Any, exported: Export) -> None:
    folder = exported(encoder)
    name, arguments = encoder.timm()
    plain = timm.create_model(name, **arguments).eval()
    plain.load_state_dict(load_file(folder / "encoder.safetensors"))
    tokens = plain.forward_features(IMAGES)
    frozen = build_frozen(found(folder, encoder), CPU)
    assert not any(item.requires_grad for item in frozen.parameters())
    torch.testing.assert_close(features(frozen, IMAGES, "class", None), tokens[:, 0])
    torch.testing.assert_close(features(frozen, IMAGES, "mean", None), tokens[:, 1:].mean(1))
    # The raw output of the last block is the tokens before the final norm.
    last = features(frozen, IMAGES, "class", encoder.depth - 1)
    torch.testing.assert_close(frozen.norm(last), tokens[:, 0])
    early = features(frozen, IMAGES, "mean", 0)
    assert early.shape == (2, encoder.width) and not torch.allclose(early, last)


def test_a_milestone_is_another_encoder_of_the_same_pretraining(exported: Export) -> None:
    folder, early = exported(VIT, seed=1), exported(VIT, seed=2)
    (folder / "milestones").mkdir()
    early.rename(folder / "milestones" / "25")
    work = Work(Path(), {"encoder": folder})
    for share, place in ((0.25, folder / "milestones/25"), (1.0, folder)):
        state = source(work, VIT, 0, "imagenet", share).state
        assert torch.equal(
            state["norm.weight"], load_file(place / "encoder.safetensors")["norm.weight"]
        )
    with pytest.raises(StageError, match="milestones/50/encoder.json"):
        source(work, VIT, 0, "imagenet", 0.5)


def test_fine_tuning_starts_with_one_bias_table_a_block_and_the_same_tokens(
    exported: Export,
) -> None:
    folder = exported(BEIT)
    model = build_trainable(found(folder, BEIT), 0, classes=5, drop_path=0.1).eval()
    shared = load_file(folder / "encoder.safetensors")["rel_pos_bias.relative_position_bias_table"]
    assert model.rel_pos_bias is None and shared.abs().sum() > 0
    for block in model.blocks:
        torch.testing.assert_close(block.attn.relative_position_bias_table.data, shared)
    frozen = build_frozen(found(folder, BEIT), CPU)
    raw = [features(each, IMAGES, "mean", 3) for each in (frozen, model)]
    torch.testing.assert_close(raw[0], raw[1])


@pytest.mark.parametrize("encoder", [VIT, BEIT], ids=["ViT", "Beit"])
def test_the_norm_of_pretraining_is_not_transferred(encoder: Any, exported: Export) -> None:
    model = build_trainable(found(exported(encoder), encoder), 0, classes=5, drop_path=0.0)
    assert isinstance(model.norm, torch.nn.Identity)
    assert torch.equal(model.fc_norm.weight, torch.ones(32))
    assert torch.equal(model.fc_norm.bias, torch.zeros(32))
    assert model.head.out_features == 5


@pytest.mark.parametrize("encoder", [VIT, BEIT], ids=["ViT", "Beit"])
def test_another_input_size_gets_interpolated_positions(encoder: Any, exported: Export) -> None:
    folder = exported(encoder)
    model = build_trainable(found(folder, encoder), 0, classes=0, drop_path=0.0, image=96).eval()
    assert model.patch_embed.grid_size == (6, 6)
    name = "pos_embed" if encoder is VIT else "rel_pos_bias.relative_position_bias_table"
    table = load_file(folder / "encoder.safetensors")[name]
    if encoder is VIT:
        expected = timm.layers.resample_abs_pos_embed(table, [6, 6])
        torch.testing.assert_close(model.pos_embed.data, expected)
    else:
        own = model.blocks[2].attn.relative_position_bias_table
        assert own.shape == (11 * 11 + 3, 2)
        torch.testing.assert_close(own[-3:].data, table[-3:])
    assert model.forward_features(torch.randn(1, 3, 96, 96)).shape == (1, 37, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("blocks.1.attn.qkv.weight"), "missing: blocks.1.attn.qkv"),
        (lambda state: state.update(extra=torch.zeros(1)), "unexpected: extra"),
        (
            lambda state: state.update({"pos_embed": torch.zeros(1, 5, 32)}),
            r"shape: pos_embed \(1, 5, 32\) for \(1, 10, 32\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    change: Callable[[dict[str, Any]], Any], message: str, exported: Export
) -> None:
    folder = exported(VIT)
    state = load_file(folder / "encoder.safetensors")
    change(state)
    save_file(state, folder / "encoder.safetensors")
    for build in (
        lambda: build_frozen(found(folder), CPU),
        lambda: build_trainable(found(folder), 0, classes=3, drop_path=0.0),
    ):
        with pytest.raises(StageError, match=message) as caught:
            build()
        assert caught.value.reason == "weights"


def test_broken_files_and_other_statistics_are_refused(exported: Export) -> None:
    folder = exported(VIT)
    with pytest.raises(StageError, match="statistics|mean") as caught:
        source(Work(Path(), {"encoder": folder}), VIT, 0, "clip")
    assert caught.value.reason == "weights"
    (folder / "encoder.safetensors").write_bytes(b"torn")
    with pytest.raises(StageError, match="cannot be read"):
        found(folder)
    (folder / "encoder.json").write_text(json.dumps({"model": "x"}))
    with pytest.raises(StageError, match="encoder.json.arguments: missing"):
        found(folder)


def test_random_initialisation_comes_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    first, state = found(None, seed=3).state, torch.get_rng_state()
    torch.manual_seed(2)
    again, other = found(None, seed=3).state, found(None, seed=4).state
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["blocks.0.mlp.fc1.weight"], other["blocks.0.mlp.fc1.weight"])
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.long
@pytest.mark.parametrize(("encoder", "count"), [(ViT(), 86_567_656), (Beit(), 86_530_984)])
def test_fine_tuning_has_as_many_parameters_as_the_official_models(
    encoder: Any, count: int
) -> None:
    model = build_trainable(found(None, encoder), 0, classes=1000, drop_path=0.1)
    assert sum(item.numel() for item in model.parameters()) == count


def test_a_bias_table_is_resized_as_beit_does() -> None:
    # A linear function of the distance, sampled where BEiT puts the samples, is met exactly.
    from evals.positions import _sample_distances, resize_bias_table

    places = torch.from_numpy(_sample_distances(27, 63)).float()
    assert float(places[-1]) == pytest.approx(31, abs=1e-3)
    assert float(places[14]) == 1.0
    heads = [places[:, None] + 0 * places, (2 * places[None, :]) + 0 * places[:, None]]
    table = torch.cat(
        [torch.stack(heads, -1).flatten(0, 1), torch.tensor([[7.0, 8], [9, 1], [2, 3]])]
    )
    resized = resize_bias_table(table, 32)
    assert resized.shape == (3972, 2)
    inside = resized[:-3].view(63, 63, 2)[1:-1, 1:-1]
    axis = torch.arange(-30.0, 31)
    torch.testing.assert_close(inside[..., 0], axis[:, None].expand(61, 61), atol=1e-3, rtol=0)
    torch.testing.assert_close(inside[..., 1], 2 * axis.expand(61, 61), atol=1e-3, rtol=0)
    assert torch.equal(resized[-3:], table[-3:])
    assert resize_bias_table(table, 14) is table


def test_a_description_of_another_size_is_the_one_that_counts(exported: Export) -> None:
    folder = exported(replace(VIT, width=48))
    assert build_frozen(found(folder, VIT), CPU).num_features == 48
