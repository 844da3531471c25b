"""Fine-tuning: the whole encoder trained for classification, the protocol of MAE and BEiT v2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from evals.protocol import optimisation_card, validation_card
from methods.data.sets import ImageData, ImageNet
from methods.parts.augment import EvaluationTransform, FineTuneAugmentation
from methods.parts.encoder import Encoder
from methods.parts.optimisation import Optimisation
from methods.parts.size import StateSize, linear, norm

if TYPE_CHECKING:
    from methods.engine.work import Work

# MAE ViT-B (FINETUNE.md); four seeds of it gave 83.57 with a standard deviation of 0.08.
MAE_BASE = Optimisation(
    epochs=100,
    batch=1024,
    learning_rate=5e-4,
    per=256,
    warmup_epochs=5,
    minimum_rate=1e-6,
    weight_decay=0.05,
    layer_decay=0.65,
)


@dataclass(frozen=True)
class FineTuning:
    """Mean of the patches -> fresh norm -> linear head, everything trained with layer decay.

    Mixing, erasing and label smoothing belong to the augmentation. head_scale multiplies the
    head's initial weights, drawn with a standard deviation of 0.02: 0.001 in MAE (2e-5) and in
    BEiT v2 (init_scale), 1 in MILAN. drop_path: stochastic depth at the last block.
    """

    kind: ClassVar[str] = "finetune"
    version: ClassVar[int] = 1

    encoder: Encoder
    data: ImageData = ImageNet()
    augmentation: FineTuneAugmentation = FineTuneAugmentation()
    validation: EvaluationTransform = EvaluationTransform()
    optimisation: Optimisation = MAE_BASE
    drop_path: float = 0.1
    head_scale: float = 0.001
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must be from 0 to below 1, not {self.drop_path}")
        if self.head_scale <= 0:
            raise ValueError(f"head_scale must be positive, not {self.head_scale}")

    def run(self, work: Work) -> dict[str, float]:
        """Percentages top1 and top5 on the validation images, after the last update."""
        from evals.finetune_training import run

        return run(self, work)

    def state_size(self, needs: Mapping[str, Any]) -> StateSize:
        """Of encoder, fresh norm and head."""
        encoder: Any = self.encoder
        head = norm(encoder.width) + linear(encoder.width, len(self.data.classes))
        return StateSize(encoder.adapted_size(encoder.image, encoder.depth) + head)

    def protocol(self) -> dict[str, Any]:
        """What a reader needs to compare this number with another's."""
        return {
            "features": f"mean of the patches, {'own' if self.encoder.pyramid else 'fresh'} norm",
            **validation_card(self.validation),
            "augmentation": self.augmentation.rand_augment or "crop and flip",
            "mixup, cutmix": f"{self.augmentation.mixup:g}, {self.augmentation.cutmix:g}",
            "drop path": self.drop_path,
            **optimisation_card(self.optimisation),
            "reported": "last",
        }
