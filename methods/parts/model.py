"""A method as a value: masking, encoder, decoder, objectives, augmentation and schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from methods.parts.augment import Augmentation
from methods.parts.decoder import Decoder, Where
from methods.parts.encoder import Encoder
from methods.parts.loss import CrossEntropy, Loss
from methods.parts.masking import Masking
from methods.parts.optimisation import Optimisation
from methods.parts.size import StateSize
from methods.parts.swin import Swin as Swin  # makes it known to `methods.values`
from methods.parts.target import Codes, Target


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

    def describe(self) -> str:
        """`CLIP projected tokens -> 2 - 2 cos, all`, as in tables."""
        weight = f"{self.weight:g} x " if self.weight != 1 else ""
        via = "" if self.prediction in ("tokens", "image") else f" ({self.prediction})"
        target, loss = self.target.describe(), self.loss.describe()
        return f"{target} -> {weight}{loss}, {self.where}{via}"

    def check(self, place: str) -> None:
        """Raise ValueError, naming `place`, where target, loss and rows do not fit each other."""
        if isinstance(self.target, Codes) != isinstance(self.loss, CrossEntropy):
            raise ValueError(f"{place}: Codes and CrossEntropy go together")
        if (self.where == "image") != (self.prediction == "image"):
            raise ValueError(f"{place}: where and prediction are 'image' together")


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

        Not in `__post_init__`: a scale and a study change one after the other, and what does not
        fit in between may fit in the end.
        """
        read = {each.prediction for each in self.objectives}
        if read != set(self.decoder.predictions):
            known = ", ".join(self.decoder.predictions)
            raise ValueError(f"objectives must read the decoder's predictions, each of: {known}")
        for number, objective in enumerate(self.objectives):
            objective.check(f"objectives.{number}")
        size, image = self.augmentation.size, getattr(self.encoder, "image", self.augmentation.size)
        if size != image:
            raise ValueError(f"augmentation.size must equal encoder.image ({image}), not be {size}")
        self.decoder.check(self.encoder)
        if not self.encoder.class_token:
            if any(each.where == "all" for each in self.objectives):
                raise ValueError(
                    "objectives must not be where='all': the encoder has no class token"
                )
            if self.masking.needs:
                raise ValueError("masking by a teacher's attention needs its grid, not cells")
        self._check_mask()

    def _check_mask(self) -> None:
        self.masking.draw(np.random.default_rng(0), self.encoder.grid)
        patches = math.prod(self.encoder.grid)
        if not 0 < self.masking.count(patches) < patches:
            raise ValueError(f"masking must hide some of the {patches} patches and show some")
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

    def state_size(self, frozen: Mapping[str, Any]) -> StateSize:
        """Of encoder, decoder and targets in training, from the values alone.

        `frozen`: by role what tells a teacher's `widths` or a tokenizer's `size`; the tasks will
        do. Raises NotImplementedError where a part does not tell its size.
        """
        encoder = self.encoder.state_size
        widths = {
            each.prediction: each.target.channels(self.encoder, frozen) for each in self.objectives
        }
        decoder = self.decoder.state_size(self.encoder, widths)
        averages = sum(each.target.averages_size(self) for each in self.objectives)
        fixed = encoder.fixed + decoder.fixed + averages
        return StateSize(encoder.trained + decoder.trained, fixed, encoder.exported)

    def describe_target(self) -> str:
        """The targets' names in tables, each once."""
        return " + ".join(dict.fromkeys(each.target.describe() for each in self.objectives))
