"""The one training loop: every stage that trains calls `fit`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from torch import Tensor, nn

from methods.engine.work import Work
from methods.parts.optimisation import Optimisation

Micro = dict[str, Any]


class Trainable(Protocol):
    """What `fit` trains."""

    module: nn.Module

    def groups(self) -> list[dict[str, Any]]: ...
    def prepare(self, step: int, micros: list[Micro]) -> list[Micro]: ...
    def after_step(self, step: int) -> dict[str, float]: ...


def fit(
    trainable: Trainable,
    optimisation: Optimisation,
    stream: Callable[[int], Iterable[list[Micro]]],
    work: Work,
    images: int,
    seed: int = 0,
) -> None:
    """Train to the end of the schedule, or on from the newest checkpoint."""
