"""A process that imports torch once, and forks one for each attempt, which need not import it."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from submitit.core.submission import process_job
from submitit.core.utils import JobPaths
from submitit.local.local import LocalExecutor, LocalJob

from harness.backends import BackendUnavailable
from harness.exits import EXIT

# What a stage of each kind imports, a few seconds' work that its siblings need not repeat.
IMPORTS = {
    "teacher": "methods.teachers.clip_training",
    "tokenizer": "methods.teachers.vqkd_training",
    "pretrain": "methods.networks.pretraining",
    "linear": "evals.linear_training",
    "finetune": "evals.finetune_training",
    "segmentation": "evals.segmentation_training",
    "knn": "evals.knn_voting",
}


class Forking:
    """The process, on the driver's side; it ends with the driver, what it has forked goes on."""

    def __init__(self, code: Path | None) -> None:
        environment = dict(os.environ)
        if code is not None:
            environment["PYTHONPATH"] = str(code.resolve())
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (lives as long as the process)
        # -P: the snapshot, and not the folder that `harness run` happens to be called in.
        # A session of its own: Ctrl-C is the driver's business, which asks the stages to save.
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-P", "-m", "harness.backends.forking"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment,
            text=True,
            start_new_session=True,
        )

    def start(self, folder: Path, kind: str) -> int:
        """The id of a new process that runs the submitit job of `folder`."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps({"folder": str(folder), "kind": kind}) + "\n")
            self.process.stdin.flush()
            return int(self.process.stdout.readline())
        except (OSError, ValueError):
            self.errors.seek(0)
            said = self.errors.read().strip().splitlines() or ["no word"]
            raise BackendUnavailable(f"stages cannot be started: {said[-1]}") from None


class ForkingExecutor(LocalExecutor):
    """submitit's local executor whose jobs are forked instead of started from nothing."""

    def __init__(self, folder: Path, kind: str, forking: Forking) -> None:
        super().__init__(folder)
        self.kind, self.forking = kind, forking

    def _submit_command(self, command: str) -> LocalJob[Any]:
        pid = self.forking.start(Path(self.folder).resolve(), self.kind)
        return LocalJob(folder=self.folder, job_id=str(pid), tasks=[0])


def serve() -> None:
    """Forks a process for each line of the standard input, until it ends; prints its id."""
    started: dict[int, Path] = {}
    signal.signal(signal.SIGCHLD, lambda *_: _bury(started))
    while line := sys.stdin.readline():
        request = json.loads(line)
        importlib.import_module(IMPORTS.get(request["kind"], "torch"))
        gc.freeze()  # what was imported is not walked again, and its memory stays shared
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            _run(Path(request["folder"]), writing)
            return
        os.close(writing)
        started[pid] = Path(request["folder"])
        os.read(reading, 1)  # until it writes its log, by which the next driver knows it
        os.close(reading)
        _bury(started)
        print(pid, flush=True)


def _bury(started: dict[int, Path]) -> None:
    """Takes leave of the processes that have ended, and writes how into their folders.

    A signal may call it while it is at work: whichever call is told that a process ended writes.
    """
    for pid, folder in list(started.items()):
        # Another call was told; the folder was removed; the disk is full.
        with contextlib.suppress(OSError):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                started.pop(pid, None)
                (folder / EXIT).write_text(f"{os.waitstatus_to_exitcode(status)}\n")


def _run(folder: Path, opened: int) -> None:
    """Becomes task 0 of the submitit job in `folder`, as its local controller would start it.

    Closes `opened` when its log is open.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    job = str(os.getpid())
    paths = JobPaths(folder, job, 0)
    with open(os.devnull) as nothing, paths.stdout.open("a") as log:
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.close(opened)
    os.environ.update(
        SUBMITIT_EXECUTOR="local",
        SUBMITIT_LOCAL_JOB_ID=job,
        SUBMITIT_LOCAL_NTASKS="1",
        SUBMITIT_LOCAL_JOB_NUM_NODES="1",
        SUBMITIT_LOCAL_NODEID="0",
        SUBMITIT_LOCAL_GLOBALID="0",
        SUBMITIT_LOCAL_LOCALID="0",
    )
    parent = os.getppid()
    while not paths.submitted_pickle.exists():  # the driver names it after this process
        if os.getppid() != parent:  # and was killed before it did
            os._exit(1)
        time.sleep(0.01)
    process_job(folder)


if __name__ == "__main__":
    serve()
