"""Writing an encoder for the evaluations: weights under timm's own names, and how to build them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from methods.engine.checkpoint import replacing, save_tensors
from methods.errors import StageError
from methods.parts.augment import mean_std
from methods.parts.encoder import Encoder


def write_encoder(
    state: Mapping[str, torch.Tensor], encoder: Encoder, statistics: str, folder: Path
) -> None:
    """Write encoder.safetensors and encoder.json into `folder`, each whole or not at all.

    `state` of the plain timm model: `timm.create_model(model, **arguments)` of the JSON loads it
    strictly. Raises StageError("disk").
    """
    weights = {name: item.detach().float().cpu().contiguous() for name, item in state.items()}
    name, arguments = encoder.timm()
    mean, std = mean_std(statistics)
    about = {
        "model": name,
        "arguments": arguments,
        "kind": type(encoder).__name__,
        "mean": mean,
        "std": std,
    }
    try:
        with replacing(folder / "encoder.safetensors") as aside:
            save_tensors(weights, aside)
            _flush(aside)
        with replacing(folder / "encoder.json") as aside:
            aside.write_text(json.dumps(about, indent=2) + "\n")
            _flush(aside)
    except OSError as error:
        raise StageError("disk", f"{folder}: the encoder cannot be written: {error}") from error


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
