"""The pretraining stage: a method, the images it learns from, and a seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import methods
from methods.data.sets import ImageData
from methods.parts.model import Method

# Makes the parts known that methods bring in their own files, for reading tasks from plain data.
methods.names()

if TYPE_CHECKING:
    from methods.engine.work import Work


@dataclass(frozen=True)
class Pretraining:
    """Pretraining by `method`. milestones: fractions of the schedule to keep an encoder at too."""

    kind: ClassVar[str] = "pretrain"
    version: ClassVar[int] = 1

    method: Method
    data: ImageData
    seed: int = 0
    threads: int = 0
    milestones: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if any(not 0 < each < 1 for each in self.milestones):
            raise ValueError(f"milestones must be above 0 and below 1, not {self.milestones}")

    def check(self) -> None:
        """Raise ValueError where the method's parts do not fit each other."""
        self.method.check()

    def run(self, work: Work) -> dict[str, float]:
        """Train, then write encoder.safetensors and encoder.json; the last logged losses.

        Milestones are written to milestones/<percent>/. Reads the frozen networks of `method.needs`
        from `work.needs`. Raises StageError, of `methods.engine.loop.fit` and of the loading.
        """
        from methods.networks.pretraining import pretrain

        return pretrain(self, work)
