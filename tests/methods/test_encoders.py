"""Students: sizes, initialisation, positions, and that hidden patches are hidden."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch import nn

from methods.networks.encoders import initialised
from methods.networks.positions import sine_cosine
from methods.parts.encoder import Beit, Encoder, ViT

TINY_VIT = ViT(image=48, patch=8, width=32, depth=3, heads=2)
TINY_BEIT = Beit(image=48, patch=8, width=32, depth=3, heads=2)


def test_positions_have_the_column_first() -> None:
    """MAE `util/pos_embed.py`: the first half of the channels is the column."""
    table = sine_cosine(16, (3, 5))
    assert table.shape == (1, 16, 16) and not table[0, 0].any()
    patches = table[0, 1:].reshape(3, 5, 16)
    assert torch.equal(patches[0, :, :8], patches[2, :, :8])
    assert torch.equal(patches[:, 0, 8:], patches[:, 4, 8:])
    frequency = 10000.0 ** (-torch.arange(4) / 4)
    expected = torch.cat([(3 * frequency).sin(), (3 * frequency).cos()])
    torch.testing.assert_close(patches[1, 3, :8], expected)
    expected = torch.cat([frequency.sin(), frequency.cos()])
    torch.testing.assert_close(patches[1, 3, 8:], expected)


def test_relative_position_index_is_beits() -> None:
    index = Beit(image=224, width=48, depth=1, heads=2).build().model.rel_pos_bias
    assert index.relative_position_bias_table.shape == (732, 2)
    table = index.relative_position_index
    assert table[0, 5] == 729 and table[5, 0] == 730 and table[0, 0] == 731
    for i, j in ((0, 0), (17, 101), (195, 0), (3, 190)):
        (r, c), (s, d) = divmod(i, 14), divmod(j, 14)
        assert table[1 + i, 1 + j] == (r - s + 13) * 27 + (c - d + 13)


def test_vit_starts_as_mae_does() -> None:
    torch.manual_seed(0)
    student = ViT(image=48, patch=8, width=96, depth=2, heads=2).build()
    assert student.mask_token is None and not student.model.pos_embed.requires_grad
    model = student.requires_grad_(False).model
    qkv = model.blocks[0].attn.qkv
    bound = math.sqrt(6 / (96 + 3 * 96))
    assert bound * 0.97 < float(qkv.weight.abs().max()) <= bound
    assert not qkv.bias.any()
    bound = math.sqrt(6 / (96 + 3 * 64))
    assert bound * 0.97 < float(model.patch_embed.proj.weight.abs().max()) <= bound
    assert float(model.cls_token.std()) == pytest.approx(0.02, rel=0.3)
    torch.testing.assert_close(model.pos_embed.data, sine_cosine(96, (6, 6)))


def test_beit_starts_cut_at_one_deviation_and_scaled_by_depth() -> None:
    """Trunc-normal(0.02, +-0.02) has deviation 0.0108 (measured on the official code)."""
    torch.manual_seed(0)
    student = Beit(image=48, patch=8, width=96, depth=3, heads=2).build().requires_grad_(False)
    model = student.model
    for weight in (model.blocks[1].attn.qkv.weight, model.patch_embed.proj.weight):
        assert float(weight.abs().max()) <= 0.02
        assert float(weight.std()) == pytest.approx(0.0108, rel=0.03)
    for number, block in enumerate(model.blocks, start=1):
        for layer in (block.attn.proj, block.mlp.fc2):
            assert float(layer.weight.std() * math.sqrt(2 * number)) == pytest.approx(
                0.0108, rel=0.05
            )
            assert not layer.bias.any()
        assert (block.gamma_1 == 0.1).all() and (block.gamma_2 == 0.1).all()
        assert not block.attn.q_bias.any() and not block.attn.v_bias.any()
    assert not model.rel_pos_bias.relative_position_bias_table.any()
    assert float(student.mask_token.abs().max()) <= 0.02 and student.mask_token.any()


@pytest.mark.parametrize("encoder", [TINY_VIT, TINY_BEIT])
def test_norms_have_the_students_epsilon(encoder: Encoder) -> None:
    norms = [each for each in encoder.build().modules() if isinstance(each, nn.LayerNorm)]
    assert norms and all(each.eps == 1e-6 for each in norms)


@pytest.mark.parametrize("hidden", ["drop", "token", "beit"])
def test_hidden_patches_change_nothing(hidden: str) -> None:
    """Neither their pixels, nor, where they are dropped, their number of tokens."""
    torch.manual_seed(0)
    value = TINY_BEIT if hidden == "beit" else ViT(**{**vars(TINY_VIT), "hidden": hidden})
    student = value.build().eval()
    mask = torch.zeros(2, 36, dtype=torch.bool)
    mask[0, :20], mask[1, 16:] = True, True
    images = torch.randn(2, 3, 48, 48)
    other = images.clone()
    for image in range(2):
        for patch in mask[image].nonzero().flatten().tolist():
            row, column = divmod(patch, 6)
            other[image, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 9.0
    first, second = student(images, mask, 2), student(other, mask, 2)
    torch.testing.assert_close(first.tokens, second.tokens)
    assert first.tokens.shape == (2, 17 if hidden == "drop" else 37, 32)
    assert first.early.shape == first.tokens.shape
    assert first.order[0, :16].tolist() == list(range(20, 36))
    shown = student(images, torch.zeros_like(mask))
    assert not torch.allclose(shown.tokens[:, 0], first.tokens[:, 0])


@pytest.mark.parametrize("encoder", [TINY_VIT, TINY_BEIT, ViT(48, 8, 32, 3, 2, layer_scale=0.1)])
def test_the_model_is_plain_timm(encoder: Encoder) -> None:
    torch.manual_seed(0)
    student = encoder.build().eval()
    name, arguments = encoder.timm()
    model = timm.create_model(name, **arguments).eval()
    model.load_state_dict(student.model.state_dict(), strict=True)
    images = torch.randn(2, 3, 48, 48)
    encoded = student(images, torch.zeros(2, 36, dtype=torch.bool))
    torch.testing.assert_close(encoded.norm(encoded.tokens), model.forward_features(images))


def test_random_initialisation_for_references() -> None:
    model = initialised(TINY_VIT)
    assert all(each.requires_grad for each in model.parameters())


def test_names_in_tables() -> None:
    assert ViT().describe() == "ViT-B/16"
    assert Beit(width=1024, depth=24, heads=16).describe() == "ViT-L/16"
    assert TINY_VIT.describe() == "ViT-3x32/8"


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: ViT(image=225), "patch"),
        (lambda: ViT(heads=7), "heads"),
        (lambda: ViT(width=6, heads=2), "width"),
        (lambda: Beit(depth=0), "depth"),
        (lambda: Beit(drop_path=1.0), "drop_path"),
        (lambda: Beit(layer_scale=0.0), "layer_scale"),
    ],
)
def test_wrong_values_are_named(make: object, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make()  # type: ignore[operator]
