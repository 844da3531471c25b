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

from harness.bench.compiled import Turns
from harness.bench.counting import Found, counted_step, counting_updates
from harness.bench.projection import Step
from harness.bench.subject import ENDLESS, Subject
from methods.engine.attention import choose_kernels
from methods.engine.loop import Trainable, fit
from methods.engine.work import Layout, Work

PARTS = ("data", "teacher", "forward", "backward", "optimiser", "rest")
"""rest: what the loop does between the others: checks, averages, logging."""


class Enough(Exception):
    """Ends `fit` without the checkpoint that its end would write."""


class Clock:
    """Adds the time since the last mark to the part that a mark ends.

    `busy`: the processor's time of this process, which others on the machine do not lengthen by
    taking turns; it means something with one thread only.
    """

    def __init__(self, device: torch.device, busy: bool = False) -> None:
        self.device, self.now = device, time.process_time if busy else time.perf_counter
        self.steps: list[dict[str, float]] = []
        self.parts = dict.fromkeys(PARTS, 0.0)
        self.last = self.now()

    def mark(self, part: str | None) -> None:
        """A part ended here; None: what was since the last mark belongs to no step."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = self.now()
        if part is not None:
            self.parts[part] += now - self.last
        self.last = now

    def lap(self) -> float:
        """Seconds since the last mark, which belong to no step."""
        before = self.last
        self.mark(None)
        return self.last - before

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
    """steps: seconds of each timed step by part. step: what was counted.

    compiled: the steps that were taken in turn, and `turns`, where that was asked for.
    """

    steps: list[dict[str, float]]
    step: Step
    compiled: list[dict[str, float]] = field(default_factory=list)
    turns: Turns | None = None

    @property
    def seconds(self) -> list[float]:
        """Of each timed step in all."""
        return [sum(parts.values()) for parts in self.steps]


def measure(
    subject: Subject,
    device: torch.device,
    steps: int,
    between: Callable[[], None] | None = None,
    busy: bool = False,
    compiled: bool = False,
) -> Measured:
    """Train: first small updates that are counted, then one that warms up and `steps` timed ones.

    between: called before each timed update, outside of its time (the peer's turn). compiled: after
    each timed update comes one with compiled blocks. The counts are those of a GPU's kernels:
    attention is the fused one. Raises what `fit` raises, and InputError where nothing compiles.
    """
    torch.manual_seed(0)
    run = _Run(subject, Clock(device, busy), steps, between, compiled)
    with tempfile.TemporaryDirectory() as folder:
        kind: Any = device.type
        work = Work(Path(folder), layout=Layout(device=kind), checkpoint_seconds=1e9)
        work.stop = lambda: run.clock.mark("backward")
        with contextlib.suppress(Enough):
            images = ENDLESS * subject.optimisation.batch
            fit(run.timed, subject.optimisation, run.stream, work, images)
    kinds = 1 + compiled
    timed = run.clock.steps[len(run.clock.steps) - kinds * steps :]
    step = counted_step(run.found, run.timed.module)
    return Measured(timed[::kinds], step, timed[1::2] if compiled else [], run.turns)


class _Run:
    """The stream of one measurement: what happens before which update."""

    def __init__(
        self,
        subject: Subject,
        clock: Clock,
        steps: int,
        between: Callable[[], None] | None,
        compiled: bool,
    ) -> None:
        self.clock, self.steps, self.between = clock, steps, between
        self.timed = Timed(subject.build(), self.clock)
        self.turns = Turns(self.timed.module) if compiled else None
        self.subject, self.precision = subject, subject.optimisation.precision
        self.found: dict[int, Found] = {}

    def stream(self, start: int) -> Iterator[list[dict[str, Any]]]:
        """Micro-batches of the same images each time."""
        module, device = self.timed.module, self.clock.device
        choose_kernels(module, torch.device("cuda"), self.precision)
        for batch in counting_updates(self._networks(), self.found):
            yield from self._update(batch)
        for batch in self.turns.counting() if self.turns is not None else ():
            yield from self._update(batch)
        batch = self.subject.optimisation.batch
        choose_kernels(module, device, self.precision)
        yield from self._update(batch)
        yield from self._compiled_update(batch)
        for _ in range(self.steps):
            if self.between is not None:
                self.between()
            self.clock.mark(None)
            yield from self._update(batch)
            yield from self._compiled_update(batch)
        raise Enough

    def _compiled_update(self, batch: int) -> Iterator[list[dict[str, Any]]]:
        if self.turns is not None:
            with self.turns.on():
                yield from self._update(batch)

    def _update(self, batch: int) -> Iterator[list[dict[str, Any]]]:
        micro = self.subject.sample(batch)
        self.clock.mark("data")
        yield [micro]
        self.clock.mark("rest")
        self.clock.step()

    def _networks(self) -> list[nn.Module]:
        """All that lives on the device: what trains, and what is frozen."""
        trainable: Any = self.timed.trainable
        frozen = [*getattr(trainable, "frozen", {}).values()]
        teacher = getattr(trainable, "teacher", None)
        networks = [self.timed.module, *frozen, *([teacher] if teacher is not None else [])]
        return [each.to(self.clock.device) for each in networks]


def product_rate(
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    size: int = 2048,
    seconds: float = 1.0,
    busy: bool = False,
) -> float:
    """FLOPs per second of the device's product of square matrices, the median over `seconds`."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    times: list[float] = []
    clock, began = Clock(device, busy), time.perf_counter()
    left @ right
    while time.perf_counter() - began < seconds or len(times) < 3:
        clock.mark(None)
        left @ right
        times.append(clock.lap())
    return float(2 * size**3 / sorted(times)[len(times) // 2])
