"""Encoders of the authors' checkpoints in, and encoders of finished stages out."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from methods.parts.encoder import Encoder
from methods.parts.model import Method

Format = Literal["timm", "mmpretrain"]


def import_encoder(path: Path, method: Method, folder: Path) -> Encoder:
    """Write encoder.safetensors and encoder.json into `folder` from a checkpoint of `method`.

    `path`: an official pretraining checkpoint, one of mmpretrain's or of timm's, as torch.save or
    safetensors wrote it; nothing in it is executed. Decoders, heads and teachers are left out. The
    size comes from the tensors, all else from the method's encoder. Returns the encoder's value.
    Raises StageError("weights") naming the tensors that do not fit.
    """
    from methods.networks.checkpoints import import_encoder as read

    return read(path, method, folder)


def export_encoder(folder: Path, path: Path, format: Format) -> None:
    """Write the encoder in `folder` as one file under the names of timm or mmpretrain.

    A path that ends in .safetensors is written so, any other by torch.save as {"state_dict": ...}.
    Raises StageError("needs") where there is no encoder and "disk" where it cannot be written.
    """
    from methods.networks.checkpoints import export_encoder as write

    write(folder, path, format)
