"""Stages killed at chosen moments and started again, held against those that were never stopped."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from harness import provenance
from harness.backends import Attempt
from harness.backends.local import LocalBackend
from harness.stage import Stage
from harness.store import Store
from methods.engine import checkpoint
from methods.engine.work import read_line

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
PATIENCE = 300.0  # for what takes a second on an idle machine
CLOCK = ("time", "images_per_second", "system/")  # what differs from run to run


@dataclass
class Result:
    """What a finished stage left, without what depends on the clock."""

    metrics: dict[str, float]
    lines: list[dict[str, float]]
    weights: dict[str, bytes]
    state: dict[str, Any]
    seconds: float


@dataclass
class Trials:
    """Runs attempts of the stages in a store through the local backend, as `harness run` does.

    `code`: a snapshot of the code, or None for the installed one.
    """

    store: Store
    data: Path
    random: random.Random
    code: Path | None = None
    backend: LocalBackend = field(default_factory=LocalBackend)
    counts: Counter[str] = field(default_factory=Counter)
    straight: dict[str, Result] = field(default_factory=dict)

    def trial(self, stage: Stage) -> None:
        """One stage from nothing, killed once or more; asserts that its results do not show it."""
        folder = self.store.add(stage, {})
        if stage.key not in self.straight:
            if self.store.outcome(folder) is None:
                self.attempt(stage, folder, 600.0, None)
            self.straight[stage.key] = self.result(folder)
        wanted = self.straight[stage.key]
        empty(folder)
        interval = self.random.choice((0.0, 0.0, 0.1))
        redone = waiting = kills = 0
        while self.store.outcome(folder) is None:
            again = kills < 1 or (kills < 3 and self.random.random() < 0.3)
            moment = self.moment(folder, wanted) if again else None
            before = resumes(folder)
            killed = self.attempt(stage, folder, interval, moment)
            if not killed or resumes(folder) > before:  # it came far enough to do it again
                redone, waiting = redone + waiting, 0
            if killed:
                kills += 1
                waiting = lost(folder, interval)
        outcome = self.store.outcome(folder)
        assert outcome is not None and outcome.done, f"{folder}: {outcome and outcome.reason}"
        assert same(self.result(folder), wanted), f"{folder} differs from the stage never stopped"
        assert outcome.redone_steps == redone, f"{folder}: {redone} steps were done again"
        self.counts["trials"] += 1
        self.counts[stage.kind] += 1
        self.counts["kills"] += kills
        self.counts["steps done again"] += redone

    def moment(self, folder: Path, wanted: Result) -> Callable[[], bool]:
        """When to kill: at a random time, after a random update, or while a file is written."""
        how = self.random.choice(("time", "update", "update", "save"))
        if how == "save" and wanted.state:
            return lambda: any((folder / "state").glob(f"{checkpoint.ASIDE}*"))
        if how == "update" and wanted.lines:
            done = len(lines(folder))
            count = self.random.randint(done + 1, max(done + 1, len(wanted.lines)))
            return lambda: len(lines(folder)) >= count
        end = time.monotonic() + self.random.uniform(0.0, 1.2 * wanted.seconds)
        return lambda: time.monotonic() >= end

    def attempt(
        self, stage: Stage, folder: Path, interval: float, moment: Callable[[], bool] | None
    ) -> bool:
        """One attempt, killed at `moment`; whether the kill came before its end."""
        job = {"backend": "local", "host": provenance.host(), "data": str(self.data)}
        attempt = self.store.begin_attempt(folder, {**job, "checkpoint_seconds": interval})
        run = Attempt(attempt, folder, stage.kind, stage.path, code=self.code)
        submitted = self.backend.submit(run)
        record = {"attempt": attempt, "job_id": submitted, "host": provenance.host()}
        limit, sent = time.monotonic() + PATIENCE, False
        while self.backend.query([record])[attempt].state == "running":
            assert time.monotonic() < limit, f"{folder}: not ended in {PATIENCE} s"
            if moment is not None and not sent and moment():
                number = self.random.choice(SIGNALS)
                self.counts[number.name] += 1
                os.kill(int(submitted.partition(".")[0]), number)
                sent = True
            time.sleep(0.002)
        return sent and self.store.outcome(folder) is None

    def result(self, folder: Path) -> Result:
        outcome = self.store.outcome(folder)
        assert outcome is not None and outcome.done, f"{folder}: {outcome and outcome.reason}"
        path, notes = checkpoint.newest(folder / "state")
        assert not notes
        state = checkpoint.read(path) if path else {}
        weights = {each.name: each.read_bytes() for each in folder.glob("*.safetensors")}
        seconds = float(outcome.cost["seconds"])
        return Result(dict(outcome.metrics), lines(folder), weights, state, seconds)


def lines(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what depends on the clock."""
    path = folder / "metrics.jsonl"
    found = map(read_line, path.read_bytes().splitlines() if path.exists() else [])
    return [
        {name: value for name, value in each.items() if not name.startswith(CLOCK)}
        for each in found
        if each is not None
    ]


def empty(folder: Path) -> None:
    """Takes everything out of a stage's folder but stage.json."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "stage.json":
            path.unlink()


def resumes(folder: Path) -> int:
    """How many attempts have taken up the work of others and rewound what these had logged."""
    path = folder / "state" / "resumes.json"
    past = json.loads(path.read_text()) if path.exists() else {"resumed": 0, "marked": 0}
    return int(past["resumed"]) - bool(past["marked"])


def lost(folder: Path, interval: float) -> int:
    """How many updates were logged after the newest checkpoint: at most an interval's.

    The update during which the interval passes may have been logged and not yet saved, and so may
    one that was made while that was written.
    """
    path, _ = checkpoint.newest(folder / "state")
    step, saved = (checkpoint.step_of(path), path.stat().st_mtime) if path else (0, 0.0)
    raw = (folder / "metrics.jsonl").read_bytes() if (folder / "metrics.jsonl").exists() else b""
    after = [each for each in map(read_line, raw.splitlines()) if each and each["step"] > step]
    late = [each for each in after if each["time"] > (saved or after[0]["time"]) + interval + 0.05]
    assert len(late) <= 2, f"{folder}: {len(late)} updates beyond the interval of {interval} s"
    return int(after[-1]["step"]) - step if after else 0


def same(found: Any, wanted: Any) -> bool:
    """Equal to the last bit; the cost in a checkpoint aside, and how long the stage took."""
    if isinstance(wanted, Result):
        mine, theirs = vars(found), vars(wanted)
        return all(same(mine[name], theirs[name]) for name in theirs if name != "seconds")
    if isinstance(wanted, torch.Tensor):
        return torch.equal(found, wanted)
    if isinstance(wanted, dict):
        names = [name for name in wanted if name != "cost"]
        return found.keys() == wanted.keys() and all(same(found[n], wanted[n]) for n in names)
    if isinstance(wanted, (list, tuple)):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    return bool(found == wanted)
