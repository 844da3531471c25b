"""A method as a value: masking, encoder, decoder, objectives, augmentation and schedule."""

from __future__ import annotations

from dataclasses import dataclass

from methods.parts.augment import Augmentation
from methods.parts.decoder import Decoder, Where
from methods.parts.encoder import Encoder
from methods.parts.loss import Loss
from methods.parts.masking import Masking
from methods.parts.optimisation import Optimisation
from methods.parts.target import Target


@dataclass(frozen=True)
class Objective:
    """One term of the loss: `weight` x loss(the decoder's `prediction`, `target`), over rows."""

    target: Target
    loss: Loss
    where: Where = "hidden"
    prediction: str = "tokens"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"weight must be above 0, not {self.weight}")


@dataclass(frozen=True)
class Method:
    """Everything that pretraining with one method depends on, besides the data and the seed."""

    name: str
    masking: Masking
    encoder: Encoder
    decoder: Decoder
    objectives: tuple[Objective, ...]
    augmentation: Augmentation
    optimisation: Optimisation

    def check(self) -> None:
        """Raise ValueError where parts do not fit each other.

        Not in `__post_init__`: a study changes one field after another, and what does not fit in
        between may fit in the end.
        """
        if not self.objectives:
            raise ValueError("objectives must name at least one objective")
        unread = set(self.decoder.predictions) - {each.prediction for each in self.objectives}
        unknown = {each.prediction for each in self.objectives} - set(self.decoder.predictions)
        if unknown or unread:
            known = ", ".join(self.decoder.predictions)
            raise ValueError(f"objectives must read the decoder's predictions, each of: {known}")
        if self.encoder.hidden not in self.decoder.reads:
            kind = type(self.decoder).__name__
            raise ValueError(f"decoder: {kind} cannot follow hidden='{self.encoder.hidden}'")
        size, image = self.augmentation.size, getattr(self.encoder, "image", self.augmentation.size)
        if size != image:
            raise ValueError(f"augmentation.size must equal encoder.image ({image}), not be {size}")
        self._check_mask()

    def _check_mask(self) -> None:
        if self.masking.exact:
            return
        # Varying counts cannot be stacked, and no single weight fits two kinds of mean.
        if self.encoder.hidden == "drop":
            raise ValueError("masking must hide an exact count where hidden patches are dropped")
        if any(each.where != "hidden" for each in self.objectives):
            raise ValueError("objectives must all be where='hidden' under a mask of varying count")

    @property
    def needs(self) -> tuple[str, ...]:
        """Roles of the frozen networks, each once."""
        parts: tuple[Masking | Target, ...] = (
            self.masking,
            *(each.target for each in self.objectives),
        )
        return tuple(dict.fromkeys(role for part in parts for role in part.needs))

    @property
    def whole_batch(self) -> bool:
        """Whether a device's share of the batch must fit at once; see `Decoder.whole_batch`."""
        return self.decoder.whole_batch

    def describe_target(self) -> str:
        """The targets' names in tables, each once."""
        return " + ".join(dict.fromkeys(each.target.describe() for each in self.objectives))
