"""What runs in a job: one attempt at one stage, from its folder to its outcome."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import provenance
from harness.ownership import Ownership
from harness.stage import task_from_record
from harness.store import LARGEST_METRIC, Outcome, Store, read_table
from methods.engine.coroutines import Coroutine, interleave
from methods.engine.work import Layout, Work, never, read_alarms
from methods.errors import DISK_ERRORS, InputError, StageError
from methods.values import from_plain


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


def run_attempt(place: Path) -> None:
    """Runs the attempt whose folder is `place`, and those that its job.json has beside it.

    Their outcomes, and nothing else, say how it went. Leaves with an exit code other than 0 unless
    all stages are done, so that a scheduler does not start what needs them.
    """
    stop = Stop()
    first = Try(place, stop, place)
    others = [Try(Path(other), stop, place) for other in first.job.get("together", ())]
    tries = [each for each in (first, *others) if not each.done()]
    with ExitStack() as stack:
        for each in tries:
            stack.enter_context(each.begun())
        if others:
            _in_turn(tries)
        else:
            for each in tries:
                each.run()
        failed = [each for each in tries if "reason" in each.ending]
        for each in failed:
            print(f"{each.ending['reason']}: {each.ending['message']}", flush=True)
        if stopped := [each for each in failed if each.ending["reason"] == "stopped"]:
            _leave_stopped(stopped)
    if failed:
        sys.exit(1)
    if tries:  # a job that had nothing to do has not imported torch
        from methods.engine import distributed

        distributed.close()  # NCCL wants a process to leave its ranks; after a failure it may hang


class Try:
    """One attempt at one stage in this process, in the job of the attempt `host`.

    `ending` is {"metrics": ...}, or why there is none: "reason" and "message".
    """

    def __init__(self, place: Path, stop: Stop, host: Path) -> None:
        self.place, self.host, self.folder = place, host, place.parent.parent
        self.store = Store(self.folder.parent.parent)
        self.job, layout, name = _job(place / "job.json")
        self.main = layout.rank == 0
        self.owner = Ownership(self.folder, place.name, name)
        self.ending: dict[str, Any] = {}
        self.coroutine: Coroutine | None = None
        self.work = Work(
            folder=self.folder,
            data=Path(str(self.job.get("data", "data"))),
            layout=layout,
            stop=stop,
            owned=self.owner.check if self.main else never,
            checkpoint_seconds=self.job["checkpoint_seconds"],
        )

    def done(self) -> bool:
        """Whether nothing is left to do."""
        outcome = self.store.outcome(self.folder)
        return outcome is not None and outcome.done

    def begun(self) -> AbstractContextManager[None]:
        """Takes the stage, and forwards its metrics while it lasts."""
        if self.main:
            self._link_logs()
            self.owner.take()
            self.work.alarms = read_alarms(self.folder)
        return _forwarding(self.folder, self.job, self.main)

    def _link_logs(self) -> None:
        """In an attempt that shares the job of another, names the job's logs as its own."""
        for log in self.host.glob("*_log.out") if self.host != self.place else ():
            with suppress(OSError):  # they are there already, or links are not to be had
                (self.place / log.name).symlink_to(os.path.relpath(log, self.place))

    def run(self) -> None:
        """Runs the task, and writes the outcome unless the stage was stopped."""
        started = time.monotonic()  # a clock may jump
        self.ending = _attempt(lambda: _run(self.store, self.work))
        self.owner.leave()
        if self.main and self.ending.get("reason") != "stopped":
            waited = self.coroutine.waited if self.coroutine else 0.0
            seconds, commit = time.monotonic() - started - waited, str(self.job.get("commit", ""))
            outcome = _outcome(self.ending, self.place.name, commit, self.work, seconds)
            self.ending |= _finish(self.store, self.folder, outcome, self.owner)


def _in_turn(tries: Sequence[Try]) -> None:
    """Runs several pretrainings that see the same images, an update of each in turn."""
    from methods.networks.together import Together

    tasks = []
    for each in tries:
        with suppress(InputError):  # the stage itself will fail with that
            tasks.append(_task(each.store.record(each.folder), each.folder))
    together = Together(tasks, tries[0].work.data, tries[0].work.layout) if tasks else None
    coroutines = [Coroutine(each.run) for each in tries]
    for each, coroutine in zip(tries, coroutines, strict=True):
        each.coroutine, each.work.turn, each.work.together = coroutine, coroutine.suspend, together
    interleave(coroutines)


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


def _task(record: dict[str, Any], folder: Path) -> Any:
    return task_from_record(record, str(folder / "stage.json"))


def _run(store: Store, work: Work) -> dict[str, float]:
    record = store.record(work.folder)
    work.needs = _needs(store, record)
    task = _task(record, work.folder)
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


def _attempt(run: Callable[[], dict[str, float]]) -> dict[str, Any]:
    """{"metrics": ...} of a stage that is done, or the "reason" and "message" of its failure."""
    try:
        metrics = run()
        for name, value in metrics.items():
            if not abs(value) <= LARGEST_METRIC:
                raise StageError("nan", f"{name} is {value} at the end")
        return {"metrics": metrics}
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


def _leave_stopped(tries: Sequence[Try]) -> None:
    """The stages saved their state and leave, on Slurm back into the queue where that helps."""
    why, main, job = str(tries[0].ending["message"]), tries[0].main, tries[0].job
    for each in tries:
        if main:
            each.store.update_attempt(each.folder, each.place.name, stopped=each.ending["message"])
    again = not main or any(each.owner.holds() for each in tries)
    if again and job.get("backend") == "slurm":
        from harness.backends import slurm_job

        slurm_job.leave(why, int(job.get("max_requeues", 20)), main)
    sys.exit(3)


def _outcome(
    ending: dict[str, Any], attempt: str, commit: str, work: Work, seconds: float
) -> Outcome:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    cost: dict[str, int | float | str] = {"device": provenance.device(), "peak_memory_bytes": peak}
    failed = "reason" in ending
    return Outcome(
        status="failed" if failed else "done",
        metrics={} if failed else {name: float(x) for name, x in ending["metrics"].items()},
        cost={**cost, **work.report, "seconds": round(seconds, 3)},
        error={"reason": ending["reason"], "message": ending["message"]} if failed else None,
        attempt=attempt,
        finished=round(time.time(), 3),
        versions=provenance.versions(),
        commit=commit,
        resumed=int(work.report.get("resumed", 0)),
        redone_steps=int(work.report.get("redone_steps", 0)),
        alarms=tuple(work.alarms),
    )
