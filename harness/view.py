"""What a person sees of a study at work: a live table, or plain lines without a terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.backends import JobState
from harness.drive import Show
from harness.reconcile import ATTEMPTS, Decision, failures
from harness.store import read_table
from methods.engine.work import read_alarms, read_line
from methods.errors import one_line

COLUMNS = (
    "stage",
    "state",
    "job",
    "node",
    "attempt",
    "step",
    "loss",
    "images/s",
    "left",
    "note",
)
COLOURS = {"done": "green", "failed": "red", "running": "cyan", "blocked": "yellow"}


def recent_metrics(folder: Path) -> list[dict[str, Any]]:
    """The last lines of metrics.jsonl, the newest at the end, however long the file is."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().splitlines()
    except OSError:
        return []
    found = map(read_line, lines)  # the first may be cut here, the last by a kill
    return [each for each in found if each is not None]


def row(decision: Decision) -> dict[str, str]:
    """The cells of one stage, each one line; what is not known is empty."""
    return {name: one_line(text) for name, text in _cells(decision).items()}


def _cells(decision: Decision) -> dict[str, str]:
    cells = dict.fromkeys(COLUMNS, "")
    cells |= {"stage": decision.stage.path, "state": decision.state}
    if decision.state == "done" and decision.outcome is not None:
        seconds = float(decision.outcome.cost.get("seconds", 0.0))
        metrics = decision.outcome.metrics
        shown = ", ".join(f"{name} {value:.4g}" for name, value in list(metrics.items())[:2])
        note = f"{shown} in {duration(seconds)}{_alarmed(decision.outcome.alarms)}"
        return cells | {"note": note}
    if decision.state in ("failed", "blocked", "missing", "queued"):
        cells["note"] = decision.why
    if decision.job is not None:
        cells |= _job(decision.folder, decision.job)
    if decision.state == "running":
        cells |= _progress(recent_metrics(decision.folder))
        cells["note"] += _alarmed(read_alarms(decision.folder))
    return cells


def _alarmed(alarms: Sequence[str]) -> str:
    """`; alarm: the loss does not move (and 2 more)`, or "" without alarms."""
    more = f" (and {len(alarms) - 1} more)" if len(alarms) > 1 else ""
    return f"; alarm: {alarms[0]}{more}" if alarms else ""


def _job(folder: Path, job: JobState) -> dict[str, str]:
    """Which job works on the stage, where, and which try it is."""
    tries = f"{failures(folder) + 1} of {ATTEMPTS}"
    # On Slurm the owner's name is `job.restarts@node`.
    number, _, restarts = _owner(folder).partition("@")[0].partition(".")
    if number == job.job and restarts not in ("", "0"):
        tries += f", requeued {restarts}x"
    return {"job": job.job.partition(".")[0], "node": job.node, "attempt": tries}


def _owner(folder: Path) -> str:
    return str((read_table(folder / "owner.json") or {}).get("job", ""))


def _progress(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    if not lines:
        return {"note": "starting"}
    newest = lines[-1]
    cells = {"step": f"{newest['step']} ({float(newest.get('progress', 0.0)):.0%})"}
    if "loss" in newest:
        cells["loss"] = f"{newest['loss']:.4f}"
    if speed := float(newest.get("images_per_second", 0.0)):
        cells["images/s"] = f"{speed:.0f}"
    if (left := seconds_left(lines, time.time())) is not None:
        cells["left"] = duration(left)
    return cells


def seconds_left(lines: Sequence[Mapping[str, Any]], now: float) -> float | None:
    """Until progress is 1 at the pace of these lines of metrics.jsonl; None where they are few."""
    points = [(each["time"], each["progress"]) for each in lines if {"time", "progress"} <= {*each}]
    if len(points) < 2 or points[-1][1] <= points[0][1]:
        return None
    (first, before), (last, after) = points[0], points[-1]
    pace = (last - first) / (after - before)
    return max(0.0, float(pace * (1 - after) - (now - last)))


def duration(seconds: float) -> str:
    """`42s`, `3m10s`, `5h02m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


@contextmanager
def watching() -> Iterator[Show]:
    """A function that shows decisions: a live table on a terminal, else a line at each change."""
    if not sys.stdout.isatty():
        yield PlainLines()
        return
    from rich.live import Live

    with Live(auto_refresh=False) as screen:
        yield lambda decisions: screen.update(table(decisions), refresh=True)


def table(decisions: Mapping[str, Decision]) -> Any:
    """A rich table of every stage."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for name in COLUMNS:
        drawn.add_column(name, no_wrap=name != "note", overflow="ellipsis")
    for decision in decisions.values():
        cells = row(decision)
        style = COLOURS.get(decision.state, "")
        drawn.add_row(
            *(Text(cells[name], style=style if name == "state" else "") for name in COLUMNS)
        )
    return drawn


class PlainLines:
    """Prints a line when a stage changes its state, and now and then how far running ones are."""

    EVERY_SECONDS = 20.0

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.told = time.monotonic()

    def __call__(self, decisions: Mapping[str, Decision]) -> None:
        due = time.monotonic() - self.told > self.EVERY_SECONDS
        if due:
            self.told = time.monotonic()
        for key, decision in decisions.items():
            changed = self.states.get(key, "missing") != decision.state
            if changed or (due and decision.state == "running"):
                self.states[key] = decision.state
                print(line(decision), flush=True)


def line(decision: Decision) -> str:
    """One stage in one line, empty cells left out."""
    cells = row(decision)
    numbers = [f"{name} {cells[name]}" for name in COLUMNS[2:-1] if cells[name]]
    words = [f"{cells['state']:8}", cells["stage"], *numbers, cells["note"]]
    return "  ".join(word for word in words if word)


def log_of(folder: Path) -> Path | None:
    """The newest log of the stage's newest attempt."""
    places = sorted((folder / "attempts").glob("*/job.json"), reverse=True)
    for place in places:
        logs = sorted(place.parent.glob("*.out"), key=lambda path: path.stat().st_mtime)
        if logs:
            return logs[-1]
    return None
