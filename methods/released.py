"""Encoders of the authors' checkpoints in, and encoders of finished stages out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from methods.parts.encoder import Encoder

Format = Literal["timm", "mmpretrain"]


@dataclass(frozen=True)
class Imported:
    """What became of a checkpoint's tensors; one that lacks or has one too many is refused.

    `loaded`: their number. `left_out`: names in the file of decoders, heads and teachers.
    `image`: pixels of a side for which the file has positions.
    """

    loaded: int
    left_out: tuple[str, ...]
    image: int


def digest(path: Path) -> str:
    """The file's SHA-256 in hexadecimal digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def import_encoder(path: Path, encoder: Encoder, statistics: str, folder: Path | None) -> Imported:
    """Write encoder.safetensors and encoder.json into `folder` from a checkpoint.

    `path`: an official pretraining checkpoint, one of mmpretrain's or of timm's, as torch.save or
    safetensors wrote it; nothing in it is executed. Decoders, heads and teachers are left out.
    Its sizes must be the `encoder`'s, but for the image: positions are interpolated, a ViT's
    bicubically and a Beit's relative ones as BEiT does. `statistics` of its images. Without
    `folder` the file is only checked. Raises StageError("weights") naming what does not fit.
    """
    from methods.networks.checkpoints import import_encoder as read

    return read(path, encoder, statistics, folder)


def export_encoder(folder: Path, path: Path, format: Format) -> None:
    """Write the encoder in `folder` as one file under the names of timm or mmpretrain.

    A path that ends in .safetensors is written so, any other by torch.save as {"state_dict": ...}.
    Raises StageError("needs") where there is no encoder and "disk" where it cannot be written.
    """
    from methods.networks.checkpoints import export_encoder as write

    write(folder, path, format)
