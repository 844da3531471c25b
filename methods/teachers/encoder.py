"""Teachers that are encoders without text: read from a released file, or pretrained here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from methods.parts.augment import Statistics
from methods.parts.encoder import Encoder, ViT
from methods.teachers.folder import Teacher

if TYPE_CHECKING:
    from methods.engine.work import Work


@dataclass(frozen=True)
class ReleasedEncoder(Teacher):
    """A ViT or Beit of DINO, MAE, BEiT or BEiT v2 from a file under the data root.

    weights: the authors' file, or mmpretrain's or timm's of it (layouts: `methods.released`); of
    DINO's full checkpoint the teacher is taken. encoder: what the file holds; for another `image`
    than the file's the positions are interpolated. statistics: of the images it was trained on.
    sha256: how the file's digest begins, "" for any file.

    UNVERIFIED: no digest was found in a source, and DINO's layout is that of its code (the names of
    timm's ViT; "teacher" and "backbone." in the full checkpoint), not of a file that was seen.
    """

    version: ClassVar[int] = 1
    fetch: ClassVar[str] = (
        "the weights of a self-supervised ViT-B/16 (see the repositories facebookresearch/dino and "
        "facebookresearch/mae, and microsoft/unilm's beit2/README.md)"
    )

    weights: str = "dino/dino_vitbase16_pretrain.pth"
    encoder: Encoder = ViT()
    statistics: Statistics = "imagenet"
    sha256: str = ""
    threads: int = 0

    @property
    def widths(self) -> dict[str, int]:
        return encoder_widths(self.encoder)

    @property
    def grid(self) -> tuple[int, int]:
        return self.encoder.grid

    def run(self, work: Work) -> dict[str, float]:
        """Writes encoder.safetensors and encoder.json; how many tensors were read.

        Raises StageError("weights") for a missing or foreign file.
        """
        from methods.teachers.encoder_network import convert

        return convert(self, work)


@dataclass(frozen=True)
class PretrainedEncoder(Teacher):
    """The encoder that `method` pretrains at the study's scale, without the study's changes.

    No stage of its own: the plan puts the pretraining in its place, and where a row of the study is
    the same pretraining, both share it.
    """

    version: ClassVar[int] = 1

    method: str = "mae"
    seed: int = 0


def encoder_widths(encoder: Encoder) -> dict[str, int]:
    """Channels of an encoder's tokens by the names of a teacher's.

    Without a projection "projected" is "normalised", as MILAN and BEiT v2 take DINO's tokens.
    """
    width: int = encoder.width  # type: ignore[attr-defined]
    return dict.fromkeys(("raw", "normalised", "projected"), width)
