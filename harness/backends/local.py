"""The local backend: each attempt in a process of its own, started by submitit's local executor."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness import provenance
from harness.backends import Attempt, JobState

SIGN_OF_LIFE_SECONDS = 60.0


class LocalBackend:
    """Starts an attempt at once; a job's id is `pid.start`, since process ids come again."""

    name = "local"

    def __init__(self) -> None:
        self.started: dict[str, Any] = {}

    def submit(self, attempt: Attempt) -> str:
        from submitit import LocalExecutor

        from harness.worker import StageJob

        executor = LocalExecutor(folder=attempt.place)
        executor.update_parameters(timeout_min=60 * 24 * 30, stderr_to_stdout=True)
        environment = dict(os.environ)
        if attempt.code is not None:
            os.environ["PYTHONPATH"] = str(attempt.code.resolve())
        # submitit's controller kills its task a second after Ctrl-C, too soon to save a checkpoint:
        # what is started while SIGINT is ignored goes on ignoring it, until the worker listens.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            job = executor.submit(StageJob(str(attempt.place.resolve())))
        finally:
            signal.signal(signal.SIGINT, handler)
            os.environ.clear()
            os.environ.update(environment)
        self.started[attempt.id] = job
        return f"{job.job_id}.{_start_of(int(job.job_id))}"

    def query(self, attempts: Iterable[Mapping[str, object]]) -> dict[str, JobState]:
        found = {}
        for attempt in attempts:
            name, job = str(attempt["attempt"]), str(attempt.get("job_id") or "")
            if name in self.started:
                self.started[name]._process.poll()  # reaps it, else it would look alive
            if job and attempt.get("host") == provenance.host():
                state = "running" if _alive(job) else "dead"
                found[name] = JobState(state, job, node=provenance.host())  # type: ignore[arg-type]
            elif _fresh(attempt):
                found[name] = JobState("running", job, node=str(attempt.get("host")))
        return found

    def cancel(self, jobs: Iterable[str]) -> None:
        """Asks each stage to save its state and leave, and kills what has not left in a minute."""
        pids = [pid for job in jobs if _alive(job) for pid in _tree(int(job.partition(".")[0]))]
        for pid in pids:
            _signal(pid, signal.SIGTERM)
        until = time.monotonic() + 60
        while time.monotonic() < until and any(_running(pid) for pid in pids):
            for job in self.started.values():
                job._process.poll()
            time.sleep(0.05)
        for pid in pids:
            _signal(pid, signal.SIGKILL)


def _fresh(attempt: Mapping[str, object]) -> bool:
    """Whether a stage on another machine has shown a sign of life lately."""
    place = attempt.get("folder")
    try:
        age = time.time() - (Path(str(place)) / "owner.json").stat().st_mtime
    except OSError:
        return False
    return age < SIGN_OF_LIFE_SECONDS


def _start_of(pid: int) -> str:
    """When the process started, in clock ticks after boot; "" where there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _alive(job: str) -> bool:
    pid, _, start = job.partition(".")
    return pid.isdecimal() and _start_of(int(pid)) == start != ""


def _running(pid: int) -> bool:
    return _start_of(pid) != ""


def _tree(pid: int) -> list[int]:
    """The processes below `pid` that do the work (submitit's controller waits for them)."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [int(child) for child in children] or [pid]


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
