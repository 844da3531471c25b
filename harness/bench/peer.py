"""Somebody else's implementation of a step, to be measured in turn with ours."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

import torch
from torch import nn

from harness.bench.counting import Found, counted_step, counting_updates
from harness.bench.measure import Clock
from harness.bench.subject import Subject
from methods.engine.device import autocast

LOADERS = {
    "mmpretrain": "harness.bench.peer_mmpretrain",
    "official": "harness.bench.peer_official",
    "one-rate": "harness.bench.peer_one_rate",
}


class Peer:
    """A peer's network, data and optimiser. `repairs`: what had to be changed for it to run.

    loss: the scalar of so many images, with its teacher and preprocessing. update: makes its
    optimiser's step and clears the gradients. batch: images of a timed step. counted: its step.
    """

    def __init__(
        self,
        about: tuple[str, str],
        precision: str,
        repairs: Sequence[str],
        network: nn.Module,
        loss: Callable[[int], torch.Tensor],
        update: Callable[[], None],
        batch: int,
        clock: Clock,
    ) -> None:
        (self.name, self.version), self.precision, self.repairs = about, precision, repairs
        self.loss, self.update, self.batch, self.clock = loss, update, batch, clock
        self.steps: list[dict[str, float]] = []
        found: dict[int, Found] = {}
        for size in counting_updates([network], found):
            self._update(size)
        self.counted = counted_step(found, network)
        self._update(batch)

    @property
    def seconds(self) -> list[float]:
        """Of each timed step."""
        return [sum(step.values()) for step in self.steps]

    def step(self) -> None:
        """One timed update."""
        self.steps.append(self._update(self.batch))

    def _update(self, size: int) -> dict[str, float]:
        """Seconds of one update of `size` images, by part."""
        clock, parts = self.clock, {}
        clock.mark(None)
        with autocast(clock.device, self.precision):
            loss = self.loss(size)
        parts["forward"] = clock.lap()
        loss.backward()
        parts["backward"] = clock.lap()
        self.update()
        parts["optimiser"] = clock.lap()
        return parts


def load_peer(name: str, precision: str | None, subject: Subject, clock: Clock) -> Peer:
    """The peer `name` for the subject's method, batch and images.

    precision None: the subject's own. Raises InputError where the peer is not installed, or has no
    such method on this encoder, and KeyError where it is not known.
    """
    load = importlib.import_module(LOADERS[name]).load
    found: Peer = load(precision or subject.optimisation.precision, subject, clock)
    return found
