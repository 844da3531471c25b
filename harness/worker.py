"""What runs in a job: one attempt at one stage, from its folder to its outcome."""

from __future__ import annotations

import os
import resource
import secrets
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import provenance
from harness.stage import task_from_record
from harness.store import Outcome, Store, read_table, write_json
from methods.engine.work import Layout, Work, read_alarms
from methods.errors import DISK_ERRORS, InputError, StageError
from methods.values import from_plain

HEARTBEAT_SECONDS = 10.0


class StageJob:
    """What submitit carries to the node: the folder of an attempt, and no closure."""

    def __init__(self, place: str) -> None:
        self.place = place

    def __call__(self) -> None:
        try:
            run_attempt(Path(self.place))
        except InputError as error:  # a damaged file of the store
            sys.exit(f"error: {error}")

    def checkpoint(self, *_: Any) -> Any:
        """For submitit, should it see a signal before `run_attempt` has its own handlers."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Stop:
    """Remembers the signal that asked the stage to save and leave."""

    SIGNALS = {
        signal.SIGTERM: "terminated",
        signal.SIGINT: "interrupted",
        signal.SIGUSR2: "preempted",
    }

    def __init__(self) -> None:
        self.reason: str | None = None
        for number in self.SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, _: Any) -> None:
        self.reason = self.SIGNALS[signal.Signals(number)]

    def __call__(self) -> str | None:
        return self.reason


class Ownership:
    """The claim of this process on a stage: owner.json, kept fresh, and asked before each save."""

    def __init__(self, folder: Path, attempt: str, job: str) -> None:
        self.path = folder / "owner.json"
        self.token = secrets.token_hex(8)
        self.claim = {
            "token": self.token,
            "attempt": attempt,
            "job": job,
            "pid": os.getpid(),
            "host": provenance.host(),
            "since": time.time(),
        }
        self._ended = threading.Event()

    def take(self) -> None:
        """Writes the claim over whoever had one, and keeps its time fresh as a sign of life."""
        write_json(self.path, self.claim)
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            try:
                self.check()
                os.utime(self.path)
            except (OSError, StageError):
                return

    def check(self) -> None:
        """Raises StageError: "stopped" where another process has taken the stage since, "disk"
        where its folder is gone or cannot be read."""
        try:
            found = read_table(self.path)
        except InputError as error:
            raise StageError("disk", str(error)) from None
        if found is None:
            raise StageError("disk", f"{self.path.parent} was removed under the running stage")
        if found.get("token") != self.token:
            owner = found.get("attempt", "nobody")
            raise StageError("stopped", f"{self.path.parent.name} now belongs to {owner}")

    def holds(self) -> bool:
        """Whether the stage still belongs to this process."""
        try:
            self.check()
        except StageError:
            return False
        return True

    def leave(self) -> None:
        """Ends the sign of life."""
        self._ended.set()


def run_attempt(place: Path) -> None:
    """Runs the attempt whose folder is `place`; its outcome, and nothing else, says how it went.

    Leaves with an exit code other than 0 unless the stage is done, so that a scheduler does not
    start what needs it.
    """
    stop = Stop()
    folder = place.parent.parent
    store = Store(folder.parent.parent)
    job, layout, name = _job(place / "job.json")
    main = layout.rank == 0
    outcome = store.outcome(folder)
    if outcome is not None and outcome.done:
        return
    owner = Ownership(folder, place.name, name)
    if main:
        owner.take()
    work = Work(
        folder=folder,
        data=Path(str(job.get("data", "data"))),
        layout=layout,
        stop=stop,
        owned=owner.check if main else _nobody_asks,
        checkpoint_seconds=job["checkpoint_seconds"],
        alarms=read_alarms(folder) if main else [],
    )
    with _forwarding(folder, job, main):
        ending = _work(store, work, owner, job, place.name)
    if "reason" in ending:
        print(f"{ending['reason']}: {ending['message']}", flush=True)
        sys.exit(1)


def _work(
    store: Store, work: Work, owner: Ownership, job: dict[str, Any], attempt: str
) -> dict[str, Any]:
    """Runs the task and writes how it ended; does not return where the stage was stopped."""
    main, started = work.layout.rank == 0, time.monotonic()  # a clock may jump
    ending = _attempt(store, work, lambda: _run(store, work))
    owner.leave()
    if ending.get("reason") == "stopped":
        again = not main or owner.holds()
        _leave_stopped(store, work.folder, attempt, job, str(ending["message"]), main, again)
    if main:
        seconds, commit = time.monotonic() - started, str(job.get("commit", ""))
        outcome = _outcome(ending, attempt, commit, work, seconds)
        return {**ending, **_finish(store, work.folder, outcome, owner)}
    return ending


def _finish(store: Store, folder: Path, outcome: Outcome, owner: Ownership) -> dict[str, Any]:
    """Writes the outcome; {} or why it could not be written."""
    try:
        owner.check()
        store.finish(folder, outcome)
    except StageError as error:
        return {"reason": error.reason, "message": f"no outcome was written: {error}"}
    except OSError as error:
        return {"reason": "disk", "message": f"no outcome was written: {error}"}
    return {}


def _forwarding(folder: Path, job: dict[str, Any], main: bool) -> AbstractContextManager[None]:
    """Live forwarding to an MLflow server that the job's environment names.

    `harness run` itself does that for the stages that it starts on its own machine.
    """
    named = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not main or job.get("backend") != "slurm" or not named.startswith(("http://", "https://")):
        return nullcontext()
    from harness import tracking

    return tracking.forwarding(folder)


def _nobody_asks() -> None:
    return None


def _job(path: Path) -> tuple[dict[str, Any], Layout, str]:
    """The content of job.json, where this process stands among the job's, and the job's name.

    Raises InputError naming the file and the field.
    """
    job = read_table(path) or {}
    seconds = job.get("checkpoint_seconds", 600.0)
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise InputError(f"{path}.checkpoint_seconds: expected a number, found {seconds!r}")
    fields = (
        *("device", "device_batch", "loader_workers", "threads"),
        *("compile", "activation_checkpointing", "shard"),
    )
    alone = from_plain(Layout, {name: job[name] for name in fields if name in job}, str(path))
    return {**job, "checkpoint_seconds": float(seconds)}, *_layout(job, alone)


def _layout(job: dict[str, Any], alone: Layout) -> tuple[Layout, str]:
    """Where this process stands among the job's, and the job's name for people."""
    if job.get("backend") != "slurm":
        return alone, f"pid {os.getpid()}"
    from harness.backends import slurm_job

    rank, world, local = slurm_job.layout()
    if world > 1:
        slurm_job.rendezvous()
    return replace(alone, rank=rank, world=world, local_rank=local), slurm_job.owner()


def _run(store: Store, work: Work) -> dict[str, float]:
    record = store.record(work.folder)
    work.needs = _needs(store, record)
    task = task_from_record(record, str(work.folder / "stage.json"))
    threads = task.threads or work.layout.threads
    if threads:
        import torch

        torch.set_num_threads(threads)
    metrics: dict[str, float] = task.run(work)
    return metrics


def _needs(store: Store, record: dict[str, Any]) -> dict[str, Path]:
    """The folders of the stages that this one needs, each of them done.

    A scheduler's word is not enough: Slurm starts a job whose `afterok` names a job that it has
    forgotten.
    """
    needs = {}
    for role, key in dict(record.get("needs", {})).items():
        folder = store.find(key)
        outcome = store.outcome(folder) if folder else None
        if folder is None or outcome is None or not outcome.done:
            raise StageError("needs", f"{role} ({key}) is not done")
        needs[role] = folder
    return needs


def _attempt(store: Store, work: Work, run: Callable[[], dict[str, float]]) -> dict[str, Any]:
    """{"metrics": ...} of a stage that is done, or the "reason" and "message" of its failure."""
    try:
        return {"metrics": run()}
    except StageError as error:
        return {"reason": error.reason, "message": str(error)}
    except InputError as error:
        return {"reason": "data", "message": str(error)}
    except KeyboardInterrupt:
        return {"reason": "stopped", "message": "interrupted"}
    except MemoryError as error:
        return {"reason": "memory", "message": f"out of memory: {error}"}
    except OSError as error:
        if error.errno in DISK_ERRORS:
            return {"reason": "disk", "message": _line(error)}
        traceback.print_exc()
        return {"reason": "code", "message": _line(error)}
    except Exception as error:
        traceback.print_exc()
        memory = "OutOfMemory" in type(error).__name__ or "can't allocate memory" in str(error)
        return {"reason": "memory" if memory else "code", "message": _line(error)}


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {text} ({Path(where.filename).name}:{where.lineno})"


def _leave_stopped(
    store: Store,
    folder: Path,
    attempt: str,
    job: dict[str, Any],
    why: str,
    main: bool,
    again: bool,
) -> None:
    """The stage saved its state and leaves; on Slurm it goes back to the queue where that helps."""
    print(f"stopped: {why}", flush=True)
    if main:
        store.update_attempt(folder, attempt, stopped=why)
    if again and job.get("backend") == "slurm":
        from harness.backends import slurm_job

        slurm_job.leave(why, int(job.get("max_requeues", 20)), main)
    sys.exit(3)


def _outcome(
    ending: dict[str, Any], attempt: str, commit: str, work: Work, seconds: float
) -> Outcome:
    report = dict(work.report)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    cost = {"device": provenance.device(), "peak_memory_bytes": peak, **report}
    cost["seconds"] = round(seconds + float(report.get("seconds_before", 0.0)), 3)
    failed = "reason" in ending
    return Outcome(
        status="failed" if failed else "done",
        metrics={} if failed else {name: float(x) for name, x in ending["metrics"].items()},
        cost=cost,
        error={"reason": ending["reason"], "message": ending["message"]} if failed else None,
        attempt=attempt,
        finished=round(time.time(), 3),
        versions=provenance.versions(),
        commit=commit,
        resumed=int(report.get("resumed", 0)),
        redone_steps=int(report.get("redone_steps", 0)),
        alarms=tuple(work.alarms),
    )
