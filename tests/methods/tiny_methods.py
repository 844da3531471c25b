"""The registered methods at a size that a test can run, with images, masks and frozen networks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

import methods
from methods.parts.model import Method
from methods.teachers import load_teacher, load_tokenizer
from methods.values import by_type, with_fields

VIT = {"image": 48, "patch": 8, "width": 32, "depth": 3, "heads": 2}
SWIN = {"image": 48, "stem": 2, "embedding": 8, "depths": (1, 1, 2, 1), "heads": (1, 1, 2, 2)}
PARTS: dict[str, dict[str, Any]] = {
    "ViT": VIT,
    "Beit": VIT,
    "Swin": {**SWIN, "window": 3},
    "Transformer": {"width": 16, "depth": 2, "heads": 2},
    "Prompting": {"width": 16, "depth": 2, "heads": 2},
    "PatchAggregation": {"early_layer": 2},
    "LatentRegressor": {"depth": 2, "decoder_depth": 2},
    "PixelAndFeature": {"width": 16, "depth": 2, "heads": 2, "feature_depth": 1, "projector": 32},
    "MomentumBranch": {"width": 8},
    "Augmentation": {"size": 48},
    "ShiftedPair": {"size": 48},
    "SecondView": {"size": 48},
}
# Methods with another student or teacher, by name: the method and what is changed in it.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "maskdistill-swin": ("maskdistill", {"encoder": {"type": "Swin"}}),
    "simmim-swin": ("simmim", {"encoder": {"type": "Swin"}, "masking.cell": 1}),
    "maskdistill-encoder": (
        "maskdistill",
        {"objectives.0.target.teacher": "mae", "objectives.0.target.statistics": "own"},
    ),
}
OPTIMISATION: dict[str, Any] = {
    "epochs": 1,
    "batch": 8,
    "warmup_epochs": 0.0,
    "learning_rate": 1e-3,
    "per": None,
    "minimum_rate": 0.0,
    "precision": "fp32",
    "schedule": "cosine",
    "decay_epochs": (),
}


def tiny(name: str) -> Method:
    """The method or variant `name` with 3 blocks of width 32 on 6 x 6 patches, or 3 x 3 cells."""
    base, changes = VARIANTS.get(name, (name, {}))
    method: Method = by_type(with_fields(methods.get(base), changes, name), PARTS, "tiny")
    optimisation = dataclasses.replace(method.optimisation, **OPTIMISATION)
    return dataclasses.replace(method, optimisation=optimisation)


def frozen_folders(root: Path) -> dict[str, Path]:
    """Randomly initialised frozen networks for the tiny methods, as their stages leave them."""
    from methods.networks.export import write_encoder
    from methods.parts.encoder import ViT
    from methods.teachers.clip import ClipTraining
    from methods.teachers.clip_network import build_clip, save_clip
    from methods.teachers.tokenizer import save
    from methods.teachers.vqkd import VqkdTraining
    from methods.teachers.vqkd_network import VqkdNetwork

    torch.manual_seed(0)
    folders = {role: root / role for role in ("clip", "vqkd", "dalle", "mae")}
    for folder in folders.values():
        folder.mkdir()
    model = ClipTraining(width=32, depth=2, heads=2, embedding=24).model
    save_clip(folders["clip"], build_clip(model).state_dict(), model, "a test")
    task = dataclasses.replace(
        VqkdTraining(),
        image=48,
        patch=8,
        width=32,
        depth=1,
        heads=2,
        decoder_depth=1,
        codes=50,
        code_dimension=8,
        augmentation=dataclasses.replace(VqkdTraining().augmentation, size=48),
    )
    network = task.network(24)
    # Any tokenizer with this grid stands for DALL-E's.
    for role in ("vqkd", "dalle"):
        save(folders[role], "vqkd", VqkdNetwork(**network), network, "a test")
    write_encoder(ViT(**VIT).build().model.state_dict(), ViT(**VIT), "imagenet", folders["mae"])
    return folders


def load(folders: dict[str, Path]) -> dict[str, torch.nn.Module]:
    """The frozen networks in `folders`, by role."""
    loaders = {"clip": load_teacher, "mae": load_teacher}
    return {role: loaders.get(role, load_tokenizer)(folder) for role, folder in folders.items()}


def loader_batch(method: Method, size: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
    """A micro-batch as the loader makes it, of smooth random pictures."""
    generator = torch.Generator().manual_seed(seed)
    side = method.augmentation.size

    def pictures(side: int) -> torch.Tensor:
        small = torch.rand(size, 3, 6, 6, generator=generator)
        large = torch.nn.functional.interpolate(small, (side, side), mode="bilinear")
        return (large * 255).to(torch.uint8)

    numpy_generator = np.random.default_rng(seed)
    draws = [method.masking.draw(numpy_generator, method.encoder.grid) for _ in range(size)]
    batch = {"image": pictures(side), "draw": torch.from_numpy(np.stack(draws))}
    if method.augmentation.second is not None or method.name == "cmae":
        batch["second"] = batch["image"].flip(-1)
    return batch


def split(batch: dict[str, torch.Tensor], parts: int) -> list[dict[str, torch.Tensor]]:
    """The batch as equal contiguous micro-batches."""
    pieces = {name: item.chunk(parts) for name, item in batch.items()}
    return [{name: piece[i] for name, piece in pieces.items()} for i in range(parts)]
