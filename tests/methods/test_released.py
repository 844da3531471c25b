"""Official and mmpretrain layouts in, and out again without loss."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from tiny_methods import tiny
from torch import Tensor

from methods.errors import StageError
from methods.networks.export import write_encoder
from methods.networks.pretrainer import MaskedModelling
from methods.parts.encoder import Beit
from methods.released import export_encoder, import_encoder

State = dict[str, Tensor]


def official(name: str, frozen: dict[str, Any]) -> tuple[MaskedModelling, State]:
    """A tiny network, and its state in the layout of the method's own code."""
    torch.manual_seed(0)
    network = MaskedModelling(tiny(name), frozen)
    state = dict(network.pretrainer.encoder.model.state_dict())
    extra = torch.zeros(3)
    if name in ("mae", "milan"):
        state |= {"mask_token": extra, "decoder_pos_embed": extra}
        state |= {"decoder_blocks.0.norm1.weight": extra, "decoder_pred.bias": extra}
    elif name == "cae":
        state = {f"encoder.{each}": item for each, item in as_cae(state).items()}
        state |= {"pretext_decoder_neck.head.bias": extra, "mask_token": extra}
    else:
        state |= {"mask_token": extra, "lm_head.bias": extra, "cls_pt_layers.0.gamma_1": extra}
        state["rel_pos_bias.relative_position_index"] = torch.zeros(37, 37, dtype=torch.int64)
    if name == "simmim":
        state = {f"encoder.{each}": item for each, item in state.items()}
        state["decoder.0.weight"] = extra
    return network, state


def as_cae(state: State) -> State:
    """BEiT's parametrisation of attention and LayerScale."""
    changed: State = {}
    for name, item in state.items():
        if name.endswith(".qkv.bias"):
            query, _, value = item.chunk(3)
            changed[name.replace("qkv.bias", "q_bias")] = query
            changed[name.replace("qkv.bias", "v_bias")] = value
        else:
            changed[re.sub(r"\.ls([12])\.gamma", r".gamma_\1", name)] = item
    return changed


@pytest.mark.parametrize("name", ["mae", "milan", "beitv2", "beit", "simmim", "cae"])
def test_official_checkpoints_come_in(name: str, frozen: dict[str, Any], tmp_path: Path) -> None:
    network, state = official(name, frozen)
    path = tmp_path / "official.pth"
    torch.save({"model": state, "args": argparse.Namespace(lr=1.0), "epoch": 3}, path)
    found = import_encoder(path, tiny(name).encoder, "imagenet", tmp_path / "in")
    assert found.image == 48 and found.loaded > 30 and len(found.left_out) > 1
    about = json.loads((tmp_path / "in" / "encoder.json").read_text())
    model = timm.create_model(about["model"], **about["arguments"])
    model.load_state_dict(load_file(tmp_path / "in" / "encoder.safetensors"), strict=True)
    expected = network.pretrainer.encoder.model.state_dict()
    assert all(torch.equal(item, expected[each]) for each, item in model.state_dict().items())


@pytest.mark.parametrize("name", ["milan", "beitv2"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("format", ["timm", "mmpretrain"])
def test_out_and_in_again(
    name: str, suffix: str, format: Any, frozen: dict[str, Any], tmp_path: Path
) -> None:
    network, _ = official(name, frozen)
    method, student = network.method, network.pretrainer.encoder
    write_encoder(student.model.state_dict(), method.encoder, "imagenet", tmp_path / "a")
    path = tmp_path / f"out.{suffix}"
    export_encoder(tmp_path / "a", path, format)
    import_encoder(path, method.encoder, "imagenet", tmp_path / "b")
    before, after = (load_file(tmp_path / each / "encoder.safetensors") for each in "ab")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[each], after[each]) for each in before)


def test_mmpretrains_names(frozen: dict[str, Any], tmp_path: Path) -> None:
    """The names that mmpretrain's BEiT has."""
    network, _ = official("beitv2", frozen)
    write_encoder(
        network.pretrainer.encoder.model.state_dict(), network.method.encoder, "imagenet", tmp_path
    )
    export_encoder(tmp_path, tmp_path / "mm.safetensors", "mmpretrain")
    names = load_file(tmp_path / "mm.safetensors").keys()
    assert {
        "backbone.cls_token",
        "backbone.patch_embed.projection.weight",
        "backbone.layers.0.ln1.weight",
        "backbone.layers.2.ffn.layers.0.0.bias",
        "backbone.layers.2.ffn.layers.1.weight",
        "backbone.layers.1.attn.q_bias",
        "backbone.layers.1.gamma_1",
        "backbone.ln1.bias",
        "backbone.rel_pos_bias.relative_position_bias_table",
    } <= names


def test_tables_of_single_blocks_come_in_where_they_are_equal(
    frozen: dict[str, Any], tmp_path: Path
) -> None:
    network, state = official("beitv2", frozen)
    table = state.pop("rel_pos_bias.relative_position_bias_table")
    own = {f"blocks.{i}.attn.relative_position_bias_table": table.clone() for i in range(3)}
    torch.save(state | own, tmp_path / "a.pth")
    encoder = network.method.encoder
    assert isinstance(encoder, Beit)
    import_encoder(tmp_path / "a.pth", encoder, "imagenet", tmp_path)
    own["blocks.1.attn.relative_position_bias_table"] += 1
    torch.save(state | own, tmp_path / "b.pth")
    with pytest.raises(StageError, match="fine-tuned"):
        import_encoder(tmp_path / "b.pth", encoder, "imagenet", tmp_path)


def test_what_does_not_fit_is_named(frozen: dict[str, Any], tmp_path: Path) -> None:
    network, state = official("mae", frozen)
    del state["norm.weight"]
    torch.save(state, tmp_path / "a.pth")
    encoder = network.method.encoder
    with pytest.raises(StageError, match=r"do not fit: 1 missing: norm\.weight") as error:
        import_encoder(tmp_path / "a.pth", encoder, "imagenet", tmp_path)
    assert error.value.reason == "weights"
    torch.save({"model": {"x": torch.zeros(1)}}, tmp_path / "b.pth")
    with pytest.raises(StageError, match="no ViT"):
        import_encoder(tmp_path / "b.pth", encoder, "imagenet", tmp_path)
    with pytest.raises(StageError, match="no encoder"):
        export_encoder(tmp_path / "nowhere", tmp_path / "x.pth", "timm")


@pytest.mark.parametrize("name", ["milan", "beitv2"])
def test_positions_are_interpolated(name: str, frozen: dict[str, Any], tmp_path: Path) -> None:
    network, state = official(name, frozen)
    if name == "milan":  # what does not depend on the place must not after interpolation either
        state["pos_embed"] = state["pos_embed"][:, :1].expand_as(state["pos_embed"]) + 1.0
    torch.save({"model": state}, tmp_path / "a.pth")
    encoder = dataclasses.replace(network.method.encoder, image=64)
    found = import_encoder(tmp_path / "a.pth", encoder, "imagenet", tmp_path)
    assert found.image == 48
    about = json.loads((tmp_path / "encoder.json").read_text())
    model = timm.create_model(about["model"], **about["arguments"])
    weights = load_file(tmp_path / "encoder.safetensors")
    model.load_state_dict(weights, strict=True)
    assert model(torch.zeros(1, 3, 64, 64)).isfinite().all()
    if name == "milan":
        torch.testing.assert_close(weights["pos_embed"], torch.ones(1, 65, 32))


def test_another_size_is_refused(frozen: dict[str, Any], tmp_path: Path) -> None:
    network, state = official("mae", frozen)
    torch.save({"model": state}, tmp_path / "a.pth")
    encoder = dataclasses.replace(network.method.encoder, depth=4)
    with pytest.raises(StageError, match="holds a ViT-3x32/8, where a ViT-4x32/8 is asked for"):
        import_encoder(tmp_path / "a.pth", encoder, "imagenet", None)


@pytest.mark.parametrize("name", ["milan", "beitv2"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_plain_timm_takes_the_export(
    name: str, suffix: str, frozen: dict[str, Any], tmp_path: Path
) -> None:
    network, _ = official(name, frozen)
    encoder, model = network.method.encoder, network.pretrainer.encoder.model
    write_encoder(network.pretrainer.encoder.model.state_dict(), encoder, "imagenet", tmp_path)
    export_encoder(tmp_path, tmp_path / f"out.{suffix}", "timm")
    kind, arguments = encoder.timm()
    path = str(tmp_path / f"out.{suffix}")
    loaded: Any = timm.create_model(kind, **arguments, checkpoint_path=path)
    images = torch.rand(2, 3, 48, 48)
    features = [each.eval().forward_features(images) for each in (model, loaded)]
    torch.testing.assert_close(features[1], features[0], rtol=0, atol=0)
