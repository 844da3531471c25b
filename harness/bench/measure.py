"""Timing the training loop from outside: `fit` calls back at the borders of a step's parts."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.bench.subject import ENDLESS, Subject
from methods.engine.attention import choose_kernels
from methods.engine.counts import Counter
from methods.engine.flops import counting
from methods.engine.loop import Trainable, fit
from methods.engine.work import Layout, Work

PARTS = ("data", "teacher", "forward", "backward", "optimiser", "rest")
"""rest: what the loop does between the others: checks, averages, logging."""

WARM = 2
"""Updates before the first that is timed."""


class Enough(Exception):
    """Ends `fit` without the checkpoint that its end would write."""


class Clock:
    """Adds the time since the last mark to the part that a mark ends."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.steps: list[dict[str, float]] = []
        self.parts = dict.fromkeys(PARTS, 0.0)
        self.last = time.perf_counter()

    def mark(self, part: str | None) -> None:
        """A part ended here; None: what was since the last mark belongs to no step."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if part is not None:
            self.parts[part] += now - self.last
        self.last = now

    def step(self) -> None:
        """A step is over."""
        self.steps.append(self.parts)
        self.parts = dict.fromkeys(PARTS, 0.0)


class Timed:
    """A trainable that tells the clock where its parts end."""

    def __init__(self, trainable: Trainable, clock: Clock) -> None:
        self.trainable, self.clock = trainable, clock
        self.module: nn.Module = trainable.module
        self.module.register_forward_pre_hook(lambda *_: clock.mark("rest"))
        self.module.register_forward_hook(lambda *_: clock.mark("forward"))

    def groups(self) -> list[dict[str, Any]]:
        """The trainable's own."""
        return self.trainable.groups()

    def prepare(self, step: int, micros: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The trainable's own; frozen networks, masks and targets."""
        self.clock.mark("rest")
        prepared = self.trainable.prepare(step, micros)
        self.clock.mark("teacher")
        return prepared

    def after_step(self, step: int) -> dict[str, float]:
        """The trainable's own; it belongs to the update."""
        scalars = self.trainable.after_step(step)
        self.clock.mark("optimiser")
        return scalars


@dataclass
class Measured:
    """steps: seconds of each timed step by part. flops: of one step."""

    steps: list[dict[str, float]] = field(default_factory=list)
    flops: int = 0
    kernels: int = 0
    moved: int = 0
    peak: int = 0

    @property
    def seconds(self) -> list[float]:
        """Of each timed step in all."""
        return [sum(parts.values()) for parts in self.steps]


def measure(
    subject: Subject,
    device: torch.device,
    steps: int,
    between: Callable[[], None] | None = None,
) -> Measured:
    """Train `steps` timed updates after those that warm up and are counted.

    between: called before each timed update, outside of its time (the peer's turn). The counts are
    those of a GPU's kernels: attention is the fused one. Raises what `fit` raises.
    """
    torch.manual_seed(0)
    clock, found = Clock(device), Measured()
    timed = Timed(subject.build(), clock)
    stages = _Stages(subject, timed, clock, found, steps, between)
    with tempfile.TemporaryDirectory() as folder:
        work = Work(Path(folder), layout=Layout(device=_type(device)), checkpoint_seconds=1e9)
        work.stop = lambda: clock.mark("backward")
        with contextlib.suppress(Enough):
            fit(timed, subject.optimisation, stages.stream, work, ENDLESS * stages.batch)
    found.steps = clock.steps[WARM:]
    return found


def _type(device: torch.device) -> Any:
    return device.type


class _Stages:
    """The stream of one measurement: what happens before which update."""

    def __init__(
        self,
        subject: Subject,
        timed: Timed,
        clock: Clock,
        found: Measured,
        steps: int,
        between: Callable[[], None] | None,
    ) -> None:
        self.timed, self.clock, self.found = timed, clock, found
        self.steps, self.between = steps, between
        self.optimisation = subject.optimisation
        self.batch = subject.optimisation.batch
        self.micro = subject.sample(self.batch)

    def stream(self, start: int) -> Iterator[list[dict[str, Any]]]:
        """The same images for each update; the first makes the optimiser's state, and a tokenizer's
        codes, and the second is counted."""
        module, frozen = self.timed.module, getattr(self.timed.trainable, "frozen", {})
        teacher = getattr(self.timed.trainable, "teacher", None)
        networks = [module, *frozen.values(), *([teacher] if teacher is not None else [])]
        choose_kernels(module, torch.device("cuda"), self.optimisation.precision)
        counter = Counter()
        for network in networks:
            network.to(self.clock.device)
            counter.hold([*network.parameters(), *network.buffers()])
        with counter:
            yield self._handed()
            self._ended()
            counter.again()
            with counting() as products:
                yield self._handed()
                self.found.flops = int(products.get_total_flops())
        self._ended()
        counts = counter.counts
        self.found.kernels, self.found.moved = counts.kernels, counts.moved
        self.found.peak = counts.peak
        choose_kernels(module, self.clock.device, self.optimisation.precision)
        for _ in range(self.steps):
            if self.between is not None:
                self.between()
            self.clock.mark(None)
            yield self._handed()
            self._ended()
        raise Enough

    def _handed(self) -> list[dict[str, Any]]:
        micro = {name: item.clone() for name, item in self.micro.items()}
        self.clock.mark("data")
        return [micro]

    def _ended(self) -> None:
        self.clock.mark("rest")
        self.clock.step()


def product_rate(
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    size: int = 2048,
    seconds: float = 1.0,
) -> float:
    """FLOPs per second of the device's product of square matrices, the median over `seconds`."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times: list[float] = []
    clock, began = Clock(device), time.perf_counter()
    left @ right
    while time.perf_counter() - began < seconds or len(times) < 3:
        clock.mark(None)
        left @ right
        before = clock.last
        clock.mark(None)
        times.append(clock.last - before)
    return float(2 * size**3 / sorted(times)[len(times) // 2])
