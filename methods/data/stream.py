"""The order in which a stage sees its images: a pure function of seed and step."""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from methods.errors import StageError

if TYPE_CHECKING:
    from methods.engine.work import Layout

Key = tuple[int, int]
"""(epoch, index): which image, and which of its draws."""

Batch = dict[str, Any]
Transform = Callable[[Any, np.random.Generator], dict[str, Any]]


class Source(Protocol):
    """Anything with a length and items that the transform understands."""

    def __len__(self) -> int:
        """How many items."""

    def __getitem__(self, index: int, /) -> Any:
        """One item; StageError("data") where it cannot be read."""


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    """The order of an epoch: int64 (length,)."""
    return np.random.default_rng([seed, epoch, length]).permutation(length)


def positions(start: int, stop: int, length: int, seed: int) -> list[Key]:
    """Keys of the positions [start, stop) of the endless stream over `length` images."""
    keys: list[Key] = []
    while start < stop:
        epoch, place = divmod(start, length)
        order = permutation(seed, epoch, length)[place : place + stop - start]
        keys += [(epoch, index) for index in order.tolist()]
        start += len(order)
    return keys


def split_batch(batch: int, layout: Layout, unit: int = 2) -> list[int]:
    """Sizes of the micro-batches into which each rank cuts its share of a global batch.

    All are equal, so that a mean of means is the mean, and multiples of `unit`, the number of
    neighbours that must stay together (2 for mixup's pairs) unless there is only one piece.
    StageError("layout") where that cannot be.
    """
    share, rest = divmod(batch, layout.world)
    if rest:
        raise StageError("layout", f"a batch of {batch} cannot be shared by {layout.world} ranks")
    limit = layout.device_batch or share
    if limit >= share and layout.world == 1:
        return [share]
    if share % unit:
        raise StageError(
            "layout", f"a rank's share of {share} images is no multiple of {unit} (batch {batch})"
        )
    fitting = [size for size in range(unit, min(limit, share) + 1, unit) if share % size == 0]
    if not fitting:
        raise StageError("layout", f"a device batch of {limit} is below {unit} images")
    return [fitting[-1]] * (share // fitting[-1])


@dataclass(frozen=True)
class _Failure:
    """What went wrong in a loader's process, to be raised in the stage's own."""

    reason: Any
    message: str


class Samples(Dataset[Batch]):
    """samples[(epoch, index)] is transform(source[index], generator of (seed, epoch, index)).

    Neither worker, rank nor batch changes a sample. "index" is added, and "caption" where the
    source has captions. An unreadable image is replaced by the next readable one where the
    source has a `skip` budget; "index" then tells which it was.
    """

    def __init__(self, source: Source, transform: Transform, seed: int, skip: int = 0) -> None:
        self.source = source
        self.transform = transform
        self.seed = seed
        self.skip = skip
        self.captions: Sequence[str] | None = getattr(source, "captions", None)

    def __getitem__(self, key: Key) -> Batch:
        """One sample; StageError("data") where its image cannot be read."""
        epoch, index = key
        index, item = self._read(index)
        sample = self.transform(item, np.random.default_rng([self.seed, epoch, key[1]]))
        sample["index"] = index
        if self.captions is not None:
            sample["caption"] = self.captions[index]
        return sample

    def __getitems__(self, keys: list[Key]) -> list[Batch] | _Failure:
        """A micro-batch at once; failures travel as values, since not every exception pickles."""
        try:
            return [self[key] for key in keys]
        except StageError as error:
            return _Failure(error.reason, str(error))

    def _read(self, index: int) -> tuple[int, Any]:
        for step in range(self.skip + 1):
            place = (index + step) % len(self.source)
            try:
                return place, self.source[place]
            except StageError:
                if step == self.skip:
                    raise
        raise AssertionError("unreachable")


def collate(samples: list[Batch] | _Failure) -> Batch | _Failure:
    """Stack tensors, arrays and numbers by name; strings and other things become lists."""
    if isinstance(samples, _Failure):
        return samples
    return {name: _stack([sample[name] for sample in samples]) for name in samples[0]}


def _stack(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.stack(values)
    if isinstance(first, np.ndarray):
        return torch.from_numpy(np.stack(values))
    if isinstance(first, bool | int | float | np.generic):
        return torch.as_tensor(np.asarray(values))
    return values


def _outlive_signals(worker: int) -> None:
    # A cluster signals every process of a job, a terminal every process of its group: the stage
    # then saves and leaves, which it could not if its loaders were gone.
    for name in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_await_parent, daemon=True).start()


def _await_parent() -> None:
    # Ending without having closed its loader, the stage's process terminates it and waits: that
    # one SIGTERM must count, or neither would ever end.
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)


def _load(samples: Samples, plan: Iterator[list[Key]], layout: Layout) -> Iterator[Batch]:
    """Micro-batches of the plan in order, from `layout.loader_workers` processes."""
    if layout.loader_workers == 0:
        loader: Iterator[Any] = (collate(samples.__getitems__(keys)) for keys in plan)
    else:
        loader = iter(
            DataLoader(
                samples,
                batch_sampler=plan,
                num_workers=layout.loader_workers,
                collate_fn=collate,
                worker_init_fn=_outlive_signals,
                pin_memory=layout.device.startswith("cuda"),
                # The loader draws a seed that nothing here uses; torch's own generator stays as is.
                generator=torch.Generator(),
            )
        )
    while True:
        try:
            batch = next(loader)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise StageError(
                "data", f"a loader process died (memory, /dev/shm or a signal): {error}"
            ) from error
        if isinstance(batch, _Failure):
            raise StageError(batch.reason, batch.message)
        yield batch


class Stream:
    """Endless steps of this rank's micro-batches, from step `start` on.

    Each rank takes a contiguous slice of the global batch, cut into equal contiguous
    micro-batches. Unreadable images that were replaced are in `skipped`, and `alarm` is told of
    each; more of them than the source's `skip` budget raise StageError("data").
    """

    def __init__(
        self,
        source: Source,
        transform: Transform,
        batch: int,
        seed: int,
        layout: Layout,
        start: int = 0,
        unit: int = 2,
    ) -> None:
        if len(source) == 0:
            raise StageError("data", "the data set is empty")
        self.batch = batch
        self.seed = seed
        self.layout = layout
        self.start = start
        self.length = len(source)
        self.per_step = split_batch(batch, layout, unit)
        self.budget: int = getattr(source, "skip", 0)
        self.skipped: set[int] = set()
        self.alarm: Callable[[str], None] = print
        self._source = source
        self._samples = Samples(source, transform, seed, self.budget)

    def _plan(self) -> Iterator[list[Key]]:
        step = self.start
        while True:
            place = step * self.batch + self.layout.rank * sum(self.per_step)
            for size in self.per_step:
                yield positions(place, place + size, self.length, self.seed)
                place += size
            step += 1

    def __iter__(self) -> Iterator[list[Batch]]:
        """One list of micro-batches for each step."""
        wanted = self._plan()
        loader = _load(self._samples, self._plan(), self.layout)
        while True:
            micros = []
            for _ in self.per_step:
                micros.append(next(loader))
                if self.budget:
                    self._count_skipped(next(wanted), micros[-1]["index"])
            yield micros

    def _count_skipped(self, keys: list[Key], got: torch.Tensor) -> None:
        for (_, index), actual in zip(keys, got.tolist(), strict=True):
            distance = (actual - index) % self.length
            for place in ((index + step) % self.length for step in range(distance)):
                if place not in self.skipped:
                    self.skipped.add(place)
                    self.alarm(f"{self._name(place)} cannot be read; others take its place")
        if len(self.skipped) > self.budget:
            raise StageError(
                "data", f"{len(self.skipped)} unreadable images, more than skip = {self.budget}"
            )

    def _name(self, index: int) -> str:
        path = getattr(self._source, "path", None)
        return str(path(index)) if path else f"image {index}"


def evaluation_batches(
    source: Source, transform: Transform, batch: int, layout: Layout
) -> Iterator[Batch]:
    """This rank's share, every image once over all ranks and none twice (so no padding).

    `batch` is per device. An unreadable image raises StageError("data"): a score over fewer
    images would be another score.
    """
    indices = list(range(layout.rank, len(source), layout.world))
    plan = ([(0, i) for i in indices[at : at + batch]] for at in range(0, len(indices), batch))
    return _load(Samples(source, transform, seed=0), plan, layout)
