"""Whether an unfinished stage lives, as far as its files and this machine's processes tell."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from harness import provenance
from harness.backends.local import LocalBackend
from harness.store import Store, read_table

# A worker touches owner.json every ten seconds; shared file systems show it later.
SIGN_OF_LIFE_SECONDS = 120.0
PROCESS_SECONDS = 3600.0  # a process id says nothing once its owner has been silent for so long


def state_of(store: Store, key: str) -> str:
    """Whether a stage without outcome is running, queued or missing.

    A job that waits in a scheduler's queue is queued until it starts: only the scheduler could say
    that it has been cancelled.
    """
    folder = store.find(key)
    if folder is None:
        return "missing"
    jobs = store.attempts(folder)
    owner = read_table(folder / "owner.json") or {}
    if owner and _alive(owner, folder / "owner.json"):
        return "running"
    if not jobs or jobs[-1].get("stopped") or jobs[-1].get("attempt") == owner.get("attempt"):
        return "missing"
    if jobs[-1].get("backend") != "local":
        return "queued"
    known = LocalBackend().query(jobs[-1:])
    return "running" if any(each.state == "running" for each in known.values()) else "missing"


def _alive(owner: dict[str, Any], path: Path) -> bool:
    try:
        age = time.time() - path.stat().st_mtime
    except OSError:
        return False
    pid = owner.get("pid")
    if owner.get("host") != provenance.host() or not isinstance(pid, int):
        return abs(age) < SIGN_OF_LIFE_SECONDS
    return abs(age) < PROCESS_SECONDS and 0 < pid < 2**31 and _runs(pid)


def _runs(pid: int) -> bool:
    """Whether there is such a process on this machine, and not merely its zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return stat.rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return not Path("/proc/self").exists()
