"""The local backend: each attempt a process of its own, a job of submitit's local executor."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from harness import provenance
from harness.backends import Attempt, JobState

if TYPE_CHECKING:
    from harness.backends.forking import Forking

SIGN_OF_LIFE_SECONDS = 60.0


class LocalBackend:
    """Starts an attempt at once; a job's id is `pid.start`, since process ids come again."""

    name = "local"

    def __init__(self) -> None:
        self.forking: dict[Path | None, Forking] = {}

    def submit(self, attempt: Attempt) -> str:
        from harness.backends.forking import Forking, ForkingExecutor
        from harness.worker import StageJob

        if attempt.code not in self.forking:
            self.forking[attempt.code] = Forking(attempt.code)
        executor = ForkingExecutor(attempt.place, attempt.kind, self.forking[attempt.code])
        job = executor.submit(StageJob(str(attempt.place_on_nodes)))
        return f"{job.job_id}.{_start_of(int(job.job_id))}"

    def query(self, attempts: Iterable[Mapping[str, object]]) -> dict[str, JobState]:
        found = {}
        for attempt in attempts:
            name, job = str(attempt.get("attempt")), str(attempt.get("job_id") or "")
            here = attempt.get("host") == provenance.host()
            job = job or (_unrecorded(attempt) if here else "")
            if job and here:
                state = "running" if _alive(job) else "dead"
                found[name] = JobState(state, job, node=provenance.host())  # type: ignore[arg-type]
            elif _fresh(attempt):
                found[name] = JobState("running", job, node=str(attempt.get("host")))
        return found

    def cancel(self, jobs: Iterable[str]) -> None:
        """Asks each stage to save its state and leave, and kills what has not left in a minute."""
        jobs = [job for job in jobs if _alive(job)]
        for job in jobs:
            _signal(job, signal.SIGTERM)
        until = time.monotonic() + 60
        while time.monotonic() < until and any(_alive(job) for job in jobs):
            time.sleep(0.05)
        for job in jobs:
            if _alive(job):
                _signal(job, signal.SIGKILL)


def _fresh(attempt: Mapping[str, object]) -> bool:
    """Whether a stage on another machine has shown a sign of life lately."""
    place = attempt.get("folder")
    try:
        age = time.time() - (Path(str(place)) / "owner.json").stat().st_mtime
    except (OSError, ValueError):
        return False
    return abs(age) < SIGN_OF_LIFE_SECONDS  # a clock may have been put back since


def _unrecorded(attempt: Mapping[str, object]) -> str:
    """The job of an attempt whose driver was killed before it could record it, or ""."""
    place = Path(str(attempt.get("folder"))) / "attempts" / str(attempt.get("attempt"))
    try:
        for log in place.glob("*_0_log.out"):
            pid = log.name.partition("_")[0]
            if Path(f"/proc/{pid}/fd/1").resolve() == log.resolve():
                return f"{pid}.{_start_of(int(pid))}"
    except (OSError, ValueError):
        pass
    return ""


def _start_of(pid: int) -> str:
    """When the process started, in clock ticks after boot; "" where there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _alive(job: str) -> bool:
    pid, _, start = job.partition(".")
    return pid.isdecimal() and len(pid) < 11 and _start_of(int(pid)) == start != ""


def _signal(job: str, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(job.partition(".")[0]), number)
