"""Parameter groups by name, and the optimisers against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from timm.models.beit import Beit
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from methods.engine.optim import Group, build_optimizer, layer_of, parameter_groups, set_rate
from methods.parts.optimisation import Optimisation

SIZE: dict[str, Any] = {
    "img_size": 32, "patch_size": 16, "embed_dim": 12, "depth": 3, "num_heads": 2,
    "num_classes": 5, "global_pool": "avg",
}  # fmt: skip


def settings(module: nn.Module, groups: list[Group]) -> dict[str, tuple[float, float]]:
    """name -> (weight decay, scale); every trainable parameter is in one group."""
    found = {id(p): (g["weight_decay"], g["lr_scale"]) for g in groups for p in g["params"]}
    named = {name: item for name, item in module.named_parameters() if item.requires_grad}
    assert sum(len(group["params"]) for group in groups) == len(found) == len(named)
    return {name: found[id(item)] for name, item in named.items()}


def test_layer_decay_of_a_vit() -> None:
    vit = VisionTransformer(**SIZE)
    value = Optimisation(1, 1, 1.0, layer_decay=0.65)
    found = settings(vit, parameter_groups(vit, value))
    expected = {
        "cls_token": (0.05, 0.65**4),  # 3-D, so MAE decays it
        "pos_embed": (0.05, 0.65**4),
        "patch_embed.proj.weight": (0.05, 0.65**4),
        "patch_embed.proj.bias": (0.0, 0.65**4),
        "blocks.0.norm1.weight": (0.0, 0.65**3),
        "blocks.0.attn.qkv.weight": (0.05, 0.65**3),
        "blocks.1.attn.qkv.bias": (0.0, 0.65**2),
        "blocks.2.mlp.fc2.weight": (0.05, 0.65),
        "fc_norm.weight": (0.0, 1.0),
        "head.weight": (0.05, 1.0),
        "head.bias": (0.0, 1.0),
    }
    for name, (decay, scale) in expected.items():
        assert found[name] == (decay, pytest.approx(scale, rel=1e-12)), name


def test_layer_decay_of_a_beit_in_a_module() -> None:
    module = nn.Module()
    module.encoder = Beit(
        **SIZE, init_values=0.1, use_abs_pos_emb=True, use_shared_rel_pos_bias=True
    )
    module.mask_token = nn.Parameter(torch.zeros(1, 1, 12))
    module.decoder = nn.Linear(12, 4)
    value = Optimisation(1, 1, 1.0, layer_decay=0.5, undecayed=("cls_token", "pos_embed"))
    found = settings(module, parameter_groups(module, value, "encoder."))
    assert found["encoder.cls_token"] == (0.0, 0.5**4)
    assert found["encoder.pos_embed"] == (0.0, 0.5**4)
    assert found["encoder.blocks.0.gamma_1"] == (0.0, 0.5**3)
    assert found["encoder.blocks.2.attn.proj.weight"] == (0.05, 0.5)
    assert found["encoder.rel_pos_bias.relative_position_bias_table"] == (0.05, 1.0)
    assert found["mask_token"] == (0.05, 1.0)  # outside of the encoder
    assert found["decoder.weight"] == (0.05, 1.0)


def test_published_scales() -> None:
    """ViT-B with 0.65: the patch embedding has 0.65^13, the last block 0.65, the head 1."""
    layers = [
        layer_of(name, (12,)) for name in ("patch_embed.proj.weight", "blocks.11.x", "head.w")
    ]
    assert [13 - layer for layer in layers] == [13, 1, 0]


def test_layers_of_a_swin() -> None:
    """As SimMIM's `get_swin_layer`, where a merging ends the stage before, with its last block."""
    swin = SwinTransformer(
        img_size=32, patch_size=2, embed_dim=4, depths=(1, 2), num_heads=(1, 1), window_size=4
    )
    value = Optimisation(1, 1, 1.0, layer_decay=0.5, undecayed=("relative_position_bias_table",))
    found = settings(swin, parameter_groups(swin, value))
    expected = {
        "patch_embed.norm.weight": (0.0, 0.5**4),
        "layers.0.blocks.0.attn.relative_position_bias_table": (0.0, 0.5**3),
        "layers.0.blocks.0.attn.qkv.weight": (0.05, 0.5**3),
        "layers.1.downsample.reduction.weight": (0.05, 0.5**3),
        "layers.1.blocks.0.mlp.fc1.weight": (0.05, 0.5**2),
        "layers.1.blocks.1.mlp.fc1.weight": (0.05, 0.5),
        "norm.weight": (0.0, 1.0),
        "head.fc.weight": (0.05, 1.0),
    }
    for name, (decay, scale) in expected.items():
        assert found[name] == (decay, pytest.approx(scale, rel=1e-12)), name


def test_frozen_parameters_are_left_out_and_no_decay_is_no_scale() -> None:
    vit = VisionTransformer(**SIZE)
    vit.pos_embed.requires_grad_(False)
    found = settings(vit, parameter_groups(vit, Optimisation(1, 1, 1.0)))
    assert "pos_embed" not in found
    assert {scale for _, scale in found.values()} == {1.0}


def test_layer_decay_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"encoder\.blocks\.0"):
        parameter_groups(nn.Linear(2, 2), Optimisation(1, 1, 1.0, layer_decay=0.5), "encoder.")


def steps_of(value: Optimisation, start: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    item = nn.Parameter(torch.tensor(start))
    groups = [{"params": [item], "weight_decay": value.weight_decay, "lr_scale": 0.5}]
    optimizer = build_optimizer(groups, value)
    for number, gradient in enumerate(gradients):
        set_rate(optimizer, value.peak * (number + 1))
        item.grad = torch.tensor(gradient)
        optimizer.step()
    return item.detach().numpy()


@pytest.mark.parametrize("shape", [(4, 3), (5,)])
def test_lars(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(1)
    start, *gradients = generator.normal(size=(4, *shape))
    value = Optimisation(1, 1, 0.3, optimizer="lars", weight_decay=0.1, trust=0.01)
    weight, buffer = start.copy(), np.zeros(shape)
    for number, change in enumerate(gradients):
        if len(shape) > 1:
            change = change + 0.1 * weight
            change = change * 0.01 * np.linalg.norm(weight) / np.linalg.norm(change)
        buffer = 0.9 * buffer + change
        weight = weight - 0.3 * (number + 1) * 0.5 * buffer
    assert steps_of(value, start, gradients) == pytest.approx(weight, rel=1e-12)


def test_lars_at_zero_takes_the_gradient() -> None:
    gradient = np.ones((2, 2))
    value = Optimisation(1, 1, 1.0, optimizer="lars", weight_decay=0.0)
    assert steps_of(value, np.zeros((2, 2)), [gradient]) == pytest.approx(-0.5 * gradient)


def test_adamw() -> None:
    generator = np.random.default_rng(2)
    start, *gradients = generator.normal(size=(4, 3, 2))
    value = Optimisation(1, 1, 0.01, betas=(0.9, 0.98), weight_decay=0.1)
    weight, first, second = start.copy(), np.zeros((3, 2)), np.zeros((3, 2))
    for t, gradient in enumerate(gradients, start=1):
        rate = 0.01 * t * 0.5
        first = 0.9 * first + 0.1 * gradient
        second = 0.98 * second + 0.02 * gradient**2
        update = (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.98**t)) + 1e-8)
        weight = weight * (1 - rate * 0.1) - rate * update
    assert steps_of(value, start, gradients) == pytest.approx(weight, rel=1e-9)


def test_sgd() -> None:
    start, gradients = np.ones(2), [np.ones(2), np.ones(2)]
    value = Optimisation(1, 1, 0.1, optimizer="sgd", weight_decay=0.0)
    expected = 1 - 0.05 * 1 - 0.1 * 1.9
    assert steps_of(value, start, gradients) == pytest.approx(np.full(2, expected))
