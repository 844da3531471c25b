"""Pretrainings that see the same images: each batch is loaded once, each teacher runs once."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from methods.data.augment import ToSample
from methods.data.stream import Stream
from methods.engine.device import Micro
from methods.engine.work import Layout
from methods.parts.masking import Masking
from methods.pretrain import Pretraining


class Together:
    """What `tasks` share: data, augmentation, order of images and size of batch are the first's.

    Masks, targets and students are each task's own, and all numbers are those of the task alone.
    """

    def __init__(self, tasks: Sequence[Pretraining], data: Path, layout: Layout) -> None:
        self.first, self.data, self.layout = tasks[0], data, layout
        self.maskings = list(dict.fromkeys(task.method.masking for task in tasks))
        self.alarms: list[Callable[[str], None]] = []
        self._frozen: dict[Any, nn.Module] = {}
        self._batches: Iterator[list[Micro]] = iter(())
        self._batch: list[Micro] = []
        self._at: int | None = None
        self._error: Exception | None = None

    def frozen(self, key: Any, load: Callable[[], nn.Module]) -> nn.Module:
        """The frozen network of `key`, which is loaded once."""
        if key not in self._frozen:
            self._frozen[key] = load()
        return self._frozen[key]

    def images(self, masking: Masking, start: int) -> Images:
        """The stream of the task with `masking`, from update `start` on."""
        return Images(self, self.maskings.index(masking), start)

    def batch(self, step: int) -> list[Micro]:
        """This rank's micro-batches of update `step`, the same as the last ones or later.

        Each has in "seen" what frozen networks made of it so far. Raises for everyone what it
        raised for the first who asked.
        """
        if self._error is not None:
            raise self._error
        if step != self._at:
            if self._at is None or step != self._at + 1:
                self._batches = iter(self._stream(step))
            try:
                self._batch, self._at = next(self._batches), step
            except Exception as error:
                self._error = error
                raise
            for micro in self._batch:
                micro["seen"] = {}
        return self._batch

    def _stream(self, start: int) -> Stream:
        method = self.first.method
        plain = ToSample(method.augmentation.build())
        transform = ToSamples(plain, self.maskings, method.encoder.grid)
        source = self.first.data.open(self.data, "train")
        batch, seed = method.optimisation.batch, self.first.seed
        stream = Stream(source, transform, batch, seed, self.layout, start=start, unit=1)
        stream.alarm = self._tell
        return stream

    def _tell(self, text: str) -> None:
        for alarm in self.alarms:
            alarm(text)


class ToSamples:
    """As `ToSample` with each of several maskings: "draw0", "draw1" ... (N,)."""

    def __init__(self, plain: ToSample, maskings: Sequence[Masking], grid: tuple[int, int]) -> None:
        self.plain, self.maskings, self.grid = plain, maskings, grid

    def __call__(self, item: Any, generator: np.random.Generator) -> dict[str, Any]:
        """One sample; every mask is drawn from the generator as the views leave it."""
        sample = self.plain(item, generator)
        for number, masking in enumerate(self.maskings):
            sample[f"draw{number}"] = masking.draw(copy.deepcopy(generator), self.grid)
        return sample


class Images:
    """One task's view of the shared batches: its own masking's draws."""

    def __init__(self, together: Together, masking: int, start: int) -> None:
        self._together, self._masking, self._start = together, masking, start

    @property
    def alarm(self) -> Callable[[str], None]:
        """Told of images that cannot be read."""
        return self._together._tell

    @alarm.setter
    def alarm(self, alarm: Callable[[str], None]) -> None:
        self._together.alarms.append(alarm)

    def __iter__(self) -> Iterator[list[Micro]]:
        """One list of micro-batches for each step.

        Of the first step the task computes everything itself: its operations are counted there.
        """
        for step in itertools.count(self._start):
            micros = self._together.batch(step)
            yield [self._own(micro, step == self._start) for micro in micros]

    def _own(self, micro: Micro, alone: bool) -> Micro:
        left = ("seen",) if alone else ()
        own = {
            name: item
            for name, item in micro.items()
            if not name.startswith("draw") and name not in left
        }
        return {**own, "draw": micro[f"draw{self._masking}"]}
