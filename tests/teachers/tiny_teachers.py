"""Teachers small enough for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from methods.data.sets import Patchwork
from methods.parts.augment import Augmentation
from methods.parts.optimisation import Optimisation
from methods.teachers import ClipTraining, VqkdTraining
from methods.teachers.clip_network import build_clip, save_clip

SCENES = Patchwork(train=24, teacher=24, validation=20)

CLIP: dict[str, Any] = {
    "data": SCENES,
    "patch": 16,
    "width": 16,
    "depth": 2,
    "heads": 2,
    "text_width": 8,
    "text_depth": 1,
    "text_heads": 1,
    "embedding": 12,
    "optimisation": Optimisation(epochs=1, batch=8, learning_rate=1e-3),
    "minimum_zero_shot": 0.0,
    "threads": 1,
}

VQKD: dict[str, Any] = {
    "data": SCENES,
    "image": 48,
    "patch": 16,
    "width": 16,
    "depth": 2,
    "heads": 2,
    "decoder_depth": 1,
    "codes": 16,
    "code_dimension": 4,
    "minimum_usage": 0.0,
    "augmentation": Augmentation(size=48),
    "optimisation": Optimisation(
        epochs=2, batch=8, learning_rate=1e-3, undecayed=("cls_token", "pos_embed")
    ),
    "threads": 1,
}


def clip_task(**changed: Any) -> ClipTraining:
    """A CLIP of 9 patches and two blocks."""
    return ClipTraining(**{**CLIP, **changed})


def vqkd_task(**changed: Any) -> VqkdTraining:
    """A tokenizer of 16 codes for the same 9 patches."""
    return VqkdTraining(**{**VQKD, **changed})


def untrained_clip(folder: Path, **changed: Any) -> Path:
    """The folder of such a CLIP with seeded random weights."""
    torch.manual_seed(0)
    model = clip_task(**changed).model
    save_clip(folder, build_clip(model).state_dict(), model, "random")
    return folder
