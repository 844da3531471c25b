"""Frozen networks with random weights, of the shape that their stages leave: for benchmarks."""

from __future__ import annotations

from typing import Any

from torch import nn

from methods.errors import InputError
from methods.networks.encoders import initialised
from methods.parts.augment import mean_std
from methods.parts.encoder import Encoder
from methods.pretrain import Pretraining
from methods.teachers.clip import ClipTraining, ReleasedClip
from methods.teachers.clip_network import CLIP_MEAN, CLIP_STD, FrozenClip, build_clip
from methods.teachers.dalle import DvaeTraining, ReleasedDalle
from methods.teachers.dalle_network import DalleEncoder
from methods.teachers.encoder import ReleasedEncoder
from methods.teachers.encoder_network import FrozenEncoder
from methods.teachers.folder import Teacher, Tokenizer
from methods.teachers.tokenizer import FrozenTokenizer
from methods.teachers.vqkd import ReleasedVqkd, VqkdTraining
from methods.teachers.vqkd_network import VqkdNetwork

PROJECTED = 512
"""Channels that the released VQ-KD was trained to predict: those of CLIP ViT-B/16."""


def untrained(task: Teacher | Tokenizer | Pretraining, projected: int = PROJECTED) -> nn.Module:
    """What `task` would leave, drawn from torch's global generator.

    `projected`: channels of the teacher that a VQ-KD tokenizer learns from. Raises InputError for
    a task that is not known here.
    """
    if isinstance(task, ClipTraining):
        return _clip(task.model)
    if isinstance(task, ReleasedClip):
        return _clip(_released_model(task))
    if isinstance(task, ReleasedEncoder):
        return _encoder(task.encoder, task.statistics)
    if isinstance(task, Pretraining):
        return _encoder(task.method.encoder, task.method.augmentation.statistics)
    return FrozenTokenizer(_tokenizer(task, projected))


def _clip(model: dict[str, Any]) -> FrozenClip:
    card = {"model": model, "mean": CLIP_MEAN, "std": CLIP_STD, "source": "untrained"}
    return FrozenClip(build_clip(model).visual, card)


def _encoder(encoder: Encoder, statistics: str) -> FrozenEncoder:
    mean, std = mean_std(statistics)
    return FrozenEncoder(initialised(encoder), {"mean": mean, "std": std})


def _released_model(task: ReleasedClip) -> dict[str, Any]:
    """Arguments of open_clip.CLIP for OpenAI's image tower with the smallest text tower."""
    large = task.widths["raw"] == 1024
    vision = {
        "layers": 24 if large else 12,
        "width": task.widths["raw"],
        "head_width": 64,
        "patch_size": 14 if large else 16,
        "image_size": task.image or 224,
    }
    text = {"context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1}
    projected = task.widths["projected"]
    return {"embed_dim": projected, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}


def _tokenizer(task: Any, projected: int) -> nn.Module:
    if isinstance(task, VqkdTraining):
        return VqkdNetwork(**task.network(projected))
    if isinstance(task, ReleasedVqkd):
        return VqkdNetwork(**VqkdTraining().network(PROJECTED))
    if isinstance(task, DvaeTraining):
        return DalleEncoder(**task.network)
    if isinstance(task, ReleasedDalle):
        return DalleEncoder(task.image, hidden=256, blocks=2, codes=task.size)
    raise InputError(f"bench: no untrained network is known for {type(task).__name__}")
