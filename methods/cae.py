"""CAE: context autoencoder for self-supervised representation learning (arXiv 2202.03026).

The encoder sees the visible half; a latent regressor predicts the encoder's own latents of the
hidden patches, and a decoder on them the DALL-E codes. Source: lxtGH/CAE, `cae_base_800e.sh`.

Cost: 800 epochs of 2048 images on 32 GPUs; the encoder runs twice, once without gradient.
Published, ViT-B/16: linear 64.5, 68.9, 70.3, fine-tuning 83.6, 83.8, 83.9 and ADE20K 48.1, 49.7,
50.3 after 300, 800 and 1600 epochs.

Known: the latents are those of the present weights (theirs are one update old); positions have the
column first (theirs the row); blocks that fall short of 98 are completed by single patches (theirs
are drawn again); the patch embedding starts Xavier-uniform (theirs cut-off normal). ViT-L ("large",
published after 1600 epochs: 77.8, 86.2, 54.9): its evaluations are those of MAE's (UNVERIFIED).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from methods.parts.augment import Augmentation, SecondView
from methods.parts.decoder import Decoder, Output
from methods.parts.encoder import LARGE, Encoder, ViT
from methods.parts.loss import L2, CrossEntropy
from methods.parts.masking import Blockwise
from methods.parts.model import Method, Objective
from methods.parts.optimisation import Optimisation
from methods.parts.size import StateSize, linear, mlp, norm
from methods.parts.target import Codes, Target

if TYPE_CHECKING:
    from torch import nn

    from methods.networks.encoders import Student
    from methods.networks.targets import TargetNetwork


@dataclass(frozen=True)
class LatentRegressor(Decoder):
    """Cross-attention from mask tokens to what is visible, then self-attention among them.

    Of the encoder's width and heads. Predicts "latents" after `depth` blocks of the first kind and
    "tokens" after `decoder_depth` of the second, both at hidden patches.
    """

    predictions: ClassVar[tuple[str, ...]] = ("latents", "tokens")
    reads: ClassVar[tuple[str, ...]] = ("drop",)

    depth: int = 4
    decoder_depth: int = 4

    def __post_init__(self) -> None:
        for name in ("depth", "decoder_depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    def describe(self) -> str:
        return f"latent regressor {self.depth} + decoder {self.decoder_depth}"

    def build(self, student: Student, outputs: Mapping[str, Output]) -> nn.Module:
        from methods.networks.cae import LatentRegressorDecoder

        return LatentRegressorDecoder(self, student, outputs)

    def state_size(self, encoder: Any, widths: Mapping[str, int]) -> StateSize:
        width, (rows, columns) = encoder.width, encoder.grid
        attention = 3 * linear(width, width) + linear(width, width, bias=False)
        regressor = 4 * norm(width) + attention + mlp(width) + 2 * width
        blocks = self.depth * regressor + self.decoder_depth * encoder.block_size
        ends = width + 2 * norm(width) + linear(width, widths["tokens"])
        return StateSize(blocks + ends, fixed=(1 + rows * columns) * width)


@dataclass(frozen=True)
class OwnLatents(Target):
    """The encoder's own normalised tokens of the hidden patches, seen without the visible ones."""

    def describe(self) -> str:
        return "own latents"

    def channels(self, encoder: Any, frozen: Mapping[str, Any]) -> int:
        return int(encoder.width)

    def build(self, encoder: Encoder, frozen: Mapping[str, Any]) -> TargetNetwork:
        from methods.networks.cae import OwnLatentTarget

        return OwnLatentTarget(encoder)


METHOD = Method(
    name="cae",
    masking=Blockwise(hidden=98, of=196, minimum=16, exact=True),
    encoder=ViT(hidden="drop", layer_scale=0.1, drop_path=0.1),
    decoder=LatentRegressor(depth=4, decoder_depth=4),
    objectives=(
        Objective(Codes("dalle"), CrossEntropy(), where="hidden", prediction="tokens"),
        Objective(OwnLatents(), L2(), where="hidden", prediction="latents", weight=2.0),
    ),
    augmentation=Augmentation(scale=(0.08, 1.0), second=SecondView(112, "lanczos")),
    optimisation=Optimisation(
        epochs=800,
        batch=2048,
        learning_rate=1.5e-3,
        warmup_epochs=20,
        warmup="table",
        minimum_rate=1e-5,
        undecayed=("cls_token", "pos_embed"),
        clip=3.0,
        precision="fp16",
    ),
)

EVALUATIONS = {
    "finetune": {
        "optimisation.learning_rate": 8e-3,
        "optimisation.per": None,
        "optimisation.batch": 4096,
        "optimisation.warmup": "table",
    },
}

SCHEDULES = {
    "300": {"optimisation.epochs": 300},
    "1600": {"optimisation.epochs": 1600},
    "large": {
        **LARGE,
        "optimisation.epochs": 1600,
        "finetune.optimisation.layer_decay": 0.75,
        "finetune.drop_path": 0.2,
        "segmentation.optimisation.layer_decay": 0.75,
        "segmentation.channels": 1024,
    },
}
