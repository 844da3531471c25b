"""CMAE: contrastive masked autoencoders are stronger vision learners (arXiv 2207.13532).

MAE with a second, small decoder whose mean output must be near what a moving average of the
encoder makes of a shifted view of the whole image. Source: ZhichengHuang/CMAE,
`cmae_vit-base-p16_32xb128-coslr-1600e`.

Cost: 1600 epochs of 4096 images; a full forward pass of the target encoder each.
Published, ViT-B/16: fine-tuning 83.8 after 300 epochs, 84.7 after 1600.

Known: as in the released code, hidden patches come in cells of 2 x 2 (the text says random). The
projectors' batch norms and the contrast see the global batch, which thus cannot be accumulated;
gains of those norms are spared from weight decay. Linear probe and segmentation are MAE's
(UNVERIFIED), and so is all of ViT-L ("large").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from methods.parts.augment import Augmentation, Views
from methods.parts.decoder import Decoder, Output, full_sequence_size
from methods.parts.encoder import LARGE, Encoder, ViT
from methods.parts.loss import L2, Loss, LossFunction
from methods.parts.masking import Cells
from methods.parts.model import Method, Objective
from methods.parts.optimisation import Optimisation
from methods.parts.size import StateSize, linear, norm
from methods.parts.target import Pixels, Target

if TYPE_CHECKING:
    from torch import nn

    from methods.networks.encoders import Student
    from methods.networks.targets import TargetNetwork


@dataclass(frozen=True)
class PixelAndFeature(Decoder):
    """MAE's decoder for "tokens"; a smaller one, its mean projected, for "image"."""

    predictions: ClassVar[tuple[str, ...]] = ("tokens", "image")
    reads: ClassVar[tuple[str, ...]] = ("drop",)
    whole_batch: ClassVar[bool] = True

    width: int = 512
    depth: int = 8
    heads: int = 16
    feature_depth: int = 2
    projector: int = 1536

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "feature_depth", "projector"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    def describe(self) -> str:
        return f"transformer {self.depth}x{self.width} + feature {self.feature_depth}x{self.width}"

    def build(self, student: Student, outputs: Mapping[str, Output]) -> nn.Module:
        from methods.networks.cmae import PixelAndFeatureDecoder

        return PixelAndFeatureDecoder(self, student, outputs)

    def state_size(self, encoder: Any, widths: Mapping[str, int]) -> StateSize:
        pixel = full_sequence_size(self.width, self.depth, encoder, widths["tokens"])
        feature = full_sequence_size(self.width, self.feature_depth, encoder, encoder.width)
        output = widths["image"]
        heads = self.projector_size(encoder.width, output) + self.projector_size(output, output)
        return StateSize(pixel.trained + feature.trained + heads, pixel.fixed + feature.fixed)

    def projector_size(self, width: int, output: int) -> int:
        """Numbers of a linear layer, a norm, and a linear layer without bias."""
        hidden = linear(width, self.projector) + norm(self.projector)
        return hidden + linear(self.projector, output, bias=False)


@dataclass(frozen=True)
class MomentumBranch(Target):
    """The second view's mean patch through moving averages of encoder and projector."""

    width: int = 256
    momentum: float = 0.996

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be from 0 to below 1, not {self.momentum}")

    def describe(self) -> str:
        return "momentum branch"

    def channels(self, encoder: Any, frozen: Mapping[str, Any]) -> int:
        return self.width

    def averages_size(self, method: Any) -> int:
        encoder = method.encoder.state_size
        projector = method.decoder.projector_size(method.encoder.width, self.width)
        return int(encoder.trained + encoder.fixed + projector)

    def build(self, encoder: Encoder, frozen: Mapping[str, Any]) -> TargetNetwork:
        from methods.networks.cmae import MomentumTarget

        return MomentumTarget(self)


@dataclass(frozen=True)
class InfoNCE(Loss):
    """2 x temperature x cross-entropy of finding the own image's target in the global batch."""

    temperature: float = 0.07

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}")

    def describe(self) -> str:
        return f"InfoNCE (temperature {self.temperature:g})"

    def build(self) -> LossFunction:
        from methods.networks.cmae import info_nce

        return lambda prediction, target: info_nce(prediction, target, self.temperature)


@dataclass(frozen=True)
class ShiftedPair(Augmentation):
    """A crop 8/7 as large, whose corner is the first view; the second is shifted and recoloured.

    Both are cut without resizing: at 224 pixels from 256, the second moved by 0 to 31 pixels.
    """

    def build(self) -> Views:
        from methods.networks.cmae import ShiftedViews

        return ShiftedViews(self)


METHOD = Method(
    name="cmae",
    masking=Cells(ratio=0.65, cell=2),
    encoder=ViT(hidden="drop"),
    decoder=PixelAndFeature(),
    objectives=(
        Objective(Pixels(normalise_patches=True), L2(), where="hidden", prediction="tokens"),
        Objective(MomentumBranch(), InfoNCE(0.07), where="image", prediction="image"),
    ),
    augmentation=ShiftedPair(scale=(0.2, 1.0)),
    optimisation=Optimisation(
        epochs=1600,
        batch=4096,
        learning_rate=1.5e-4,
        per=256,
        warmup_epochs=40,
        warmup="table",
        warmup_start=1e-4,
        betas=(0.9, 0.95),
        undecayed=("cls_token", "mask_token", "pos_embed"),
        precision="fp16",
    ),
)

EVALUATIONS = {"finetune": {"optimisation.learning_rate": 2.5e-4}}

SCHEDULES = {
    "300": {"optimisation.epochs": 300},
    "800": {"optimisation.epochs": 800},
    "large": {
        **LARGE,
        "finetune.optimisation.layer_decay": 0.75,
        "finetune.drop_path": 0.2,
        "segmentation.optimisation.layer_decay": 0.75,
        "segmentation.channels": 1024,
    },
}
