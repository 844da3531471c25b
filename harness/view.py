"""What a person sees of a study at work: a live table, or plain lines without a terminal."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.drive import Show
from harness.run import Decision
from harness.store import Store

COLUMNS = ("stage", "state", "step", "loss", "images/s", "left", "note")
COLOURS = {"done": "green", "failed": "red", "running": "cyan", "blocked": "yellow"}


def last_metrics(folder: Path) -> dict[str, Any]:
    """The last whole line of metrics.jsonl, read from its end; {} where there is none."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return {}


def row(decision: Decision) -> dict[str, str]:
    """The cells of one stage; what is not known is empty."""
    cells = dict.fromkeys(COLUMNS, "")
    cells |= {"stage": decision.stage.path, "state": decision.state}
    if decision.state == "done" and decision.outcome is not None:
        seconds = float(decision.outcome.cost.get("seconds", 0.0))
        metrics = decision.outcome.metrics
        shown = ", ".join(f"{name} {value:.4g}" for name, value in list(metrics.items())[:2])
        return cells | {"note": f"{shown} in {duration(seconds)}"}
    if decision.state in ("failed", "blocked", "missing", "queued"):
        cells["note"] = decision.why
    if decision.state == "running":
        cells |= _progress(last_metrics(decision.folder))
    return cells


def _progress(metrics: Mapping[str, Any]) -> dict[str, str]:
    if "step" not in metrics:
        return {"note": "starting"}
    progress = float(metrics.get("progress", 0.0))
    speed = float(metrics.get("images_per_second", 0.0))
    age = time.time() - float(metrics.get("time", time.time()))
    cells = {"step": f"{metrics['step']} ({progress:.0%})"}
    if "loss" in metrics:
        cells["loss"] = f"{metrics['loss']:.4f}"
    if speed:
        cells["images/s"] = f"{speed:.0f}"
    if "seconds_left" in metrics:
        cells["left"] = duration(max(0.0, float(metrics["seconds_left"]) - age))
    return cells


def duration(seconds: float) -> str:
    """`42s`, `3m10s`, `5h02m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


@contextmanager
def watching(live: bool | None = None) -> Iterator[Show]:
    """A function that shows decisions: a live table on a terminal, else a line at each change."""
    if not (sys.stdout.isatty() if live is None else live):
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
    numbers = [f"{name} {cells[name]}" for name in COLUMNS[2:6] if cells[name]]
    words = [f"{cells['state']:8}", cells["stage"], *numbers, cells["note"]]
    return "  ".join(word for word in words if word)


def log_of(store: Store, folder: Path) -> Path | None:
    """The newest log of the stage's newest attempt."""
    places = sorted((folder / "attempts").glob("*/job.json"), reverse=True)
    for place in places:
        logs = sorted(place.parent.glob("*.out"), key=lambda path: path.stat().st_mtime)
        if logs:
            return logs[-1]
    return None
