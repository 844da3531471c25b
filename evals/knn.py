"""k nearest neighbours on frozen features: no training, so a check that costs two passes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from evals.protocol import check_features, features_card, validation_card
from methods.data.sets import ImageData, ImageNet
from methods.parts.augment import EvaluationTransform
from methods.parts.encoder import Encoder
from methods.parts.size import StateSize

if TYPE_CHECKING:
    from methods.engine.work import Work


@dataclass(frozen=True)
class NearestNeighbours:
    """DINO's protocol (eval_knn.py): cosine similarity, votes weighted by exp(similarity / t).

    milestone: the share of the pretraining's schedule after which the encoder is asked.
    """

    kind: ClassVar[str] = "knn"
    version: ClassVar[int] = 1

    encoder: Encoder
    data: ImageData = ImageNet()
    validation: EvaluationTransform = EvaluationTransform()
    neighbours: int = 20
    temperature: float = 0.07
    pooling: Literal["class", "mean"] = "class"
    layer: int | None = None
    seed: int = 0
    threads: int = 0
    milestone: float = 1.0

    def __post_init__(self) -> None:
        check_features(self.layer, self.milestone)
        if self.neighbours < 1:
            raise ValueError(f"neighbours must be at least 1, not {self.neighbours}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, not {self.temperature}")

    def run(self, work: Work) -> dict[str, float]:
        """The percentage top1 of the validation images."""
        from evals.knn_voting import run

        return run(self, work)

    def state_size(self, needs: Mapping[str, Any]) -> StateSize:
        """Nothing is trained."""
        return StateSize()

    def protocol(self) -> dict[str, Any]:
        """What a reader needs to compare this number with another's."""
        return {
            "features": f"{features_card(self.pooling, self.layer)}, unit length",
            **validation_card(self.validation),
            "neighbours": self.neighbours,
            "temperature": self.temperature,
            "pretrained for": f"{self.milestone:.0%} of the schedule",
        }
