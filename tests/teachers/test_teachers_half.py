"""Frozen networks under autocast: cast once, near to float32, and float32 again outside of it."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU

from methods.teachers.clip_network import CLIP_MEAN, CLIP_STD, FrozenClip, build_clip
from methods.teachers.dalle_network import DalleEncoder
from methods.teachers.tokenizer import FrozenTokenizer
from methods.teachers.vqkd_network import VqkdNetwork

MODEL: dict[str, Any] = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 24},
    "text_cfg": {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1},
    "quick_gelu": True,
}
CARD = {"mean": CLIP_MEAN, "std": CLIP_STD}


def images() -> torch.Tensor:
    return torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def test_the_folded_tower_is_open_clips_own() -> None:
    torch.manual_seed(0)
    visual: Any = build_clip(MODEL).visual.eval()
    plain = copy.deepcopy(visual)
    assert isinstance(plain.transformer.resblocks[0].mlp.gelu, QuickGELU)
    teacher = FrozenClip(visual, CARD)
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (CLIP_MEAN, CLIP_STD))
    with torch.no_grad():
        tokens = plain.transformer(plain._embeds((images() - mean) / std))
    torch.testing.assert_close(teacher(images()).raw, tokens, rtol=1e-4, atol=1e-5)


def test_a_teacher_is_cast_once_and_keeps_its_float32() -> None:
    torch.manual_seed(0)
    teacher = FrozenClip(build_clip(MODEL).visual, CARD)
    full = teacher(images())
    with torch.autocast("cpu", torch.bfloat16):
        half = teacher(images())
        kept = teacher.copies.half
        teacher(images())
    assert kept is not None and teacher.copies.half is kept
    assert {each.dtype for each in kept.parameters()} == {torch.bfloat16}
    assert half.raw.dtype == half.projected.dtype == half.attention.dtype == torch.float32
    assert not torch.equal(half.raw, full.raw)
    assert F.cosine_similarity(half.projected, full.projected, dim=-1).min() > 0.99
    assert torch.equal(teacher(images()).raw, full.raw)
    assert all(not name.startswith("copies") for name in teacher.state_dict())


def test_codes_are_picked_in_float32() -> None:
    torch.manual_seed(0)
    vqkd = VqkdNetwork(24, 8, 32, 2, 2, 1, codes=50, code_dimension=8, target=16)
    tokenizer = FrozenTokenizer(vqkd)
    full = tokenizer.codes(images())
    with torch.autocast("cpu", torch.bfloat16):
        half = tokenizer.codes(images())
    kept: Any = tokenizer.copies.half
    assert kept.encoder.patch_embed.proj.weight.dtype == torch.bfloat16
    assert kept.encode_task_layer[0].weight.dtype == torch.float32
    assert kept.encode(images()).dtype == torch.float32
    assert (half == full).float().mean() > 0.6
    assert torch.equal(tokenizer.codes(images()), full)


def test_dalles_logits_stay_in_float32() -> None:
    torch.manual_seed(0)
    tokenizer = FrozenTokenizer(DalleEncoder(image=24, hidden=8, blocks=1, codes=20))
    full = tokenizer.codes(images())
    with torch.autocast("cpu", torch.bfloat16):
        half = tokenizer.codes(images())
    kept: Any = tokenizer.copies.half
    assert kept.blocks.group_1.block_1.res_path.conv_1.weight.dtype == torch.bfloat16
    assert kept(images()).dtype == torch.float32
    assert half.shape == full.shape and (half == full).float().mean() > 0.6
