"""Linear probing: one linear layer on frozen features, as MAE and MILAN measure it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from evals.protocol import check_features, features_card, optimisation_card, validation_card
from methods.data.sets import ImageData, ImageNet
from methods.parts.augment import EvaluationTransform, LinearAugmentation
from methods.parts.encoder import Encoder
from methods.parts.optimisation import Optimisation
from methods.parts.size import StateSize, linear

if TYPE_CHECKING:
    from methods.engine.work import Work

# MAE ViT-B (FINETUNE.md): LARS without weight decay, batch 16384; MILAN has 0.05 and 100 epochs.
MAE_BASE = Optimisation(
    epochs=90,
    batch=16384,
    learning_rate=0.1,
    per=256,
    warmup_epochs=10,
    optimizer="lars",
    weight_decay=0.0,
)


FIXED = "fixed, as in validation; cached features (its own protocol)"


@dataclass(frozen=True)
class LinearProbe:
    """BatchNorm without affine and a linear layer on features of the frozen encoder (MAE's recipe).

    pooling: the class token, or the mean of the patches (encoders without a trained class token).
    layer: None for the tokens after the final norm, else the raw output of that block, from 0.
    rates: factors of the published learning rate that are tried beside it, on the same features.
    holdout: every so-many-th training image is kept from the heads of `rates`, and the best of
        them is chosen on those images. The published rate's head (`top1`) trains on all images.
    milestone: the share of the pretraining's schedule after which the encoder is probed; below 1
        the pretraining must have kept it (`Pretraining.milestones`).
    views: "random" for a new crop and flip of an image whenever it is seen; "fixed" for one view,
        the validation's, whose features are computed once: a protocol of its own, far cheaper.
    """

    kind: ClassVar[str] = "linear"
    version: ClassVar[int] = 1

    encoder: Encoder
    data: ImageData = ImageNet()
    augmentation: LinearAugmentation = LinearAugmentation()
    validation: EvaluationTransform = EvaluationTransform()
    optimisation: Optimisation = MAE_BASE
    pooling: Literal["class", "mean"] = "class"
    layer: int | None = None
    rates: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    holdout: int = 20
    seed: int = 0
    threads: int = 0
    milestone: float = 1.0
    views: Literal["random", "fixed"] = "random"

    def __post_init__(self) -> None:
        check_features(self.layer, self.milestone)
        if any(rate <= 0 for rate in self.rates):
            raise ValueError(f"rates must be positive factors, not {self.rates}")
        if self.holdout < 2:
            raise ValueError(f"holdout must be at least 2, not {self.holdout}")

    def run(self, work: Work) -> dict[str, float]:
        """Percentages top1 and top5 at the published rate; top1_best_rate and that best_rate."""
        from evals.linear_training import run

        return run(self, work)

    def state_size(self, needs: Mapping[str, Any]) -> StateSize:
        """Of the heads and the running statistics; the encoder is no part of the checkpoint."""
        encoder: Any = self.encoder
        heads = (1 + len(self.rates)) * linear(encoder.width, len(self.data.classes))
        return StateSize(heads, fixed=2 * encoder.width)

    def protocol(self) -> dict[str, Any]:
        """What a reader needs to compare this number with another's."""
        return {
            "features": features_card(self.pooling, self.layer),
            "head": "BatchNorm without affine, linear",
            **validation_card(self.validation),
            "training views": FIXED if self.views == "fixed" else "random crops and flips",
            **optimisation_card(self.optimisation),
            "reported": "last, at the published rate",
            "pretrained for": f"{self.milestone:.0%} of the schedule",
        }
