"""How a process that wrote no outcome ended, as far as this machine can tell."""

from __future__ import annotations

import signal
import time
from pathlib import Path

EXIT = "exit-code"  # in the folder of an attempt, by whoever started its process
PATIENCE_SECONDS = 1.0  # a process is seen to be gone before whoever started it could say how


def memory_kills() -> int:
    """How many processes the kernel has killed for want of memory since it started, 0 if unsaid."""
    try:
        counts = dict(map(str.split, Path("/proc/vmstat").read_text().splitlines()))
        return int(counts["oom_kill"])
    except (OSError, KeyError, ValueError):
        return 0


def exit_code(place: Path) -> int | None:
    """The exit code of the attempt in `place`, -9 where signal 9 ended it; None if nobody knows."""
    logs = place.glob("*_log.out")  # of an attempt in the job of another a link to the other's
    path = next((log.resolve().parent for log in logs), place) / EXIT
    until = time.monotonic() + PATIENCE_SECONDS
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.02)
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def told(place: Path, kills_before: int) -> dict[str, str]:
    """Reason and message for the outcome. `kills_before`: memory_kills() when it was started."""
    code, ended = exit_code(place), "the process ended without an outcome"
    if code is None:
        return {"reason": "killed", "message": f"{ended}; nobody saw how"}
    if code >= 0:
        return {"reason": "code", "message": f"{ended}, with exit code {code}"}
    if code == -signal.SIGKILL and memory_kills() > kills_before:
        return {"reason": "memory", "message": f"{ended}: SIGKILL, as the kernel does for memory"}
    return {"reason": "killed", "message": f"{ended}: signal {-code}, {name_of(-code)}"}


def name_of(number: int) -> str:
    """`SIGKILL` for 9; the system may have signals without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return "of no name"
