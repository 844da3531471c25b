"""Somebody else's implementation of a step, to be measured in turn with ours."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from harness.bench.measure import Clock, Measured
from harness.bench.subject import Subject
from methods.engine.counts import Counter
from methods.engine.device import autocast
from methods.engine.flops import counting

LOADERS = {"mmpretrain": "harness.bench.peer_mmpretrain"}
PARTS = ("forward", "backward", "optimiser")


class Peer:
    """A peer's network, data and optimiser. `repairs`: what had to be changed for it to run.

    loss: the scalar of the peer's own data, with its teacher and preprocessing. update: makes its
    optimiser's step and clears the gradients.
    """

    def __init__(
        self,
        about: tuple[str, str],
        precision: str,
        repairs: Sequence[str],
        network: nn.Module,
        loss: Callable[[], torch.Tensor],
        update: Callable[[], None],
        device: torch.device,
    ) -> None:
        (self.name, self.version), self.precision, self.repairs = about, precision, repairs
        self.network, self.loss, self.update, self.device = network, loss, update, device
        self.steps: list[dict[str, float]] = []
        self.counted = self._count()

    @property
    def seconds(self) -> list[float]:
        """Of each timed step."""
        return [sum(step.values()) for step in self.steps]

    def step(self) -> None:
        """One timed update."""
        clock, parts = Clock(self.device), {}
        for part, seconds in zip(PARTS, self._update(clock), strict=True):
            parts[part] = seconds
        self.steps.append(parts)

    def _update(self, clock: Clock) -> list[float]:
        marks = []
        with self._autocast():
            loss = self.loss()
        for work in (None, loss.backward, self.update):
            if work is not None:
                work()
            before = clock.last
            clock.mark(None)
            marks.append(clock.last - before)
        return marks

    def _autocast(self) -> AbstractContextManager[Any]:
        return autocast(self.device, self.precision)

    def _count(self) -> Measured:
        """One update that makes the optimiser's state, then one that is counted."""
        counter = Counter()
        counter.hold([*self.network.parameters(), *self.network.buffers()])
        with counter:
            self._update(Clock(self.device))
            counter.again()
            with counting() as products:
                self._update(Clock(self.device))
        counts = counter.counts
        flops = int(products.get_total_flops())
        return Measured([], flops, counts.kernels, counts.moved, counts.peak)


def load_peer(name: str, precision: str | None, subject: Subject, device: torch.device) -> Peer:
    """The peer `name` for the subject's method, batch and images.

    precision None: the subject's own. Raises InputError where the peer is not installed, or has no
    such method on this encoder, and KeyError where it is not known.
    """
    load = importlib.import_module(LOADERS[name]).load
    found: Peer = load(precision or subject.optimisation.precision, subject, device)
    return found
