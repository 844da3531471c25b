"""What a running task is given: its folder, its needs, where it runs and when it must leave."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from methods.errors import StageError

ALARMS = "alarms.txt"
LARGEST = 1e300  # of numbers in metrics.jsonl


@dataclass(frozen=True)
class Layout:
    """Where and how a stage runs; none of it may change a number by more than rounding.

    rank, world, local_rank: of this process. device_batch: most images at a time on one device;
    a rank's part of the batch is cut into micro-batches of at most that (None: not cut).
    loader_workers: processes that load per rank, 0 for none. threads: of this process's CPU
    operations, 0 for the library's default. compile, activation_checkpointing: of the blocks that
    are trained, see `methods.engine.execution`. shard: over the ranks, see
    `methods.engine.parallel`.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    device: Literal["cpu", "cuda"] = "cpu"
    loader_workers: int = 0
    device_batch: int | None = None
    threads: int = 0
    compile: bool = False
    activation_checkpointing: bool = False
    shard: bool = False

    def __post_init__(self) -> None:
        if self.world < 1 or not 0 <= self.rank < self.world or self.local_rank < 0:
            raise ValueError(f"rank {self.rank} of {self.world} (local {self.local_rank})")
        if self.device_batch is not None and self.device_batch < 1:
            raise ValueError(f"device_batch must be at least 1, not {self.device_batch}")


def never() -> None:
    """Neither a reason to stop nor another owner."""
    return None


def nobody_waits(done: int) -> None:
    """The turn of a stage that has its process for itself."""


@dataclass
class Work:
    """A stage at work.

    folder: the stage's folder. needs: role -> folder of the finished stage. data: root of the data.
    stop: asked after each update; a reason to save and leave ("preempted", "interrupted") or None.
    owned: raises StageError("stopped") when another job has taken the stage; asked before a save.
    checkpoint_seconds: time between checkpoints.
    report: the cost, filled by `methods.engine.loop.fit` (keys in its docstring).
    turn: asked before each update with the number of those done; returns when it may begin.
    together: what the stage shares with others in its process, `methods.networks.together`.
    alarms: what a person should know although the stage went on, e.g. a broken checkpoint; of this
    attempt and, in the stage's alarms.txt, of those before.
    """

    folder: Path
    needs: dict[str, Path] = field(default_factory=dict)
    data: Path = Path("data")
    layout: Layout = field(default_factory=Layout)
    stop: Callable[[], str | None] = never
    owned: Callable[[], None] = never
    checkpoint_seconds: float = 600.0
    turn: Callable[[int], None] = nobody_waits
    together: Any = None
    report: dict[str, float | int | str] = field(default_factory=dict)
    alarms: list[str] = field(default_factory=list)

    @property
    def metrics(self) -> Path:
        """One JSON object a line: "step" (updates done), "time" (unix seconds) and metrics."""
        return self.folder / "metrics.jsonl"

    def log(self, step: int, **metrics: float) -> None:
        """Append one line to metrics.jsonl, on rank 0.

        Raises StageError: "disk", or "stopped" when another job has taken the stage, whose lines
        would be mixed with these.
        """
        if self.layout.rank == 0:
            self.owned()
            line = json.dumps({"step": step, "time": round(time.time(), 3), **metrics})
            self._append(self.metrics, line)

    def alarm(self, text: str) -> None:
        """Remember `text` for the outcome, once, and print it to the log, on rank 0.

        Raises StageError("disk").
        """
        text = " ".join(text.split())
        if self.layout.rank != 0 or text in self.alarms:
            return
        self.alarms.append(text)
        print(f"warning: {text}", flush=True)
        self._append(self.folder / ALARMS, text)

    def _append(self, path: Path, line: str) -> None:
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise StageError("disk", f"{path}: {error.strerror}") from error

    def logged_after(self, step: int) -> int:
        """How many updates past `step` are in metrics.jsonl: they will be done a second time."""
        return int(max(0, max((entry["step"] for _, entry in self._lines()), default=0) - step))

    def rewind(self, step: int) -> None:
        """Drop the metrics after update `step` and a torn last line, on rank 0.

        The loop logs an update once; a further line of the last update is of what came after the
        training, and is dropped too, since that is done again.
        """
        if self.layout.rank != 0 or not self.metrics.exists():
            return
        kept, newest = "", -1
        for line, entry in self._lines():
            if newest < entry["step"] <= step:
                kept, newest = f"{kept}{line}\n", int(entry["step"])
        aside = self.metrics.with_name(".metrics.jsonl.new")
        aside.write_text(kept, encoding="utf-8")
        os.replace(aside, self.metrics)

    def _lines(self) -> list[tuple[str, dict[str, float]]]:
        """The whole lines of metrics.jsonl, each with its numbers."""
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text(encoding="utf-8", errors="replace").splitlines()
        return [(line, entry) for line in lines if (entry := read_line(line)) is not None]


def read_line(line: str | bytes) -> dict[str, float] | None:
    """The numbers of one line of metrics.jsonl, "step" among them; None for a line without.

    A kill in the midst of writing tears a line, and so may a fault of the disk.
    """
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    pairs = entry.items() if isinstance(entry, dict) else ()
    numbers = {name: value for name, value in pairs if _is_number(value)}
    return numbers if isinstance(numbers.get("step"), int) else None


def _is_number(value: Any) -> bool:
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return known and abs(value) < LARGEST  # false of NaN too


def read_alarms(folder: Path) -> list[str]:
    """What alarmed the attempts at the stage in `folder`, also those that were killed."""
    try:
        return (folder / ALARMS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
