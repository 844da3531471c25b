"""`harness doctor --smoke`: one short job through a profile, and what it found on the nodes."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from harness import provenance
from harness.backends import Attempt, Backend, BackendRefused, BackendUnavailable
from harness.cluster import Cluster
from harness.smoke import Smoke, findings
from harness.snapshot import snapshot
from harness.stage import Stage
from harness.store import Store
from harness.view import log_of

GONE_SECONDS = 20.0  # a job that has left the queue may need as long until its outcome is seen


@dataclass(frozen=True)
class Finding:
    """One line: how bad, what was looked at, and what was found or is to be done."""

    level: Literal["ok", "warning", "problem"]
    what: str
    told: str

    def __str__(self) -> str:
        return f"{self.level:8} {self.what}: {' '.join(self.told.split())}"


def smoke(cluster: Cluster, backend: Backend, root: Path, data: Path, wait: float) -> list[Finding]:
    """Sends one short job through the profile and says what it found; waits so many seconds.

    `backend` is the profile's, made of `cluster`, which `smoke_profile` has made short.
    """
    store = Store(root).create()
    stage = Stage("smoke", "check", Smoke(secrets.token_hex(5)))
    folder = store.add(stage, {})
    job = {**cluster.job("smoke"), "host": provenance.host(), "data": str(data.resolve())}
    attempt = store.begin_attempt(folder, job)
    try:
        sent = Attempt(attempt, folder, "smoke", stage.path, code=snapshot(root))
        number = backend.submit(sent)
        store.update_attempt(folder, attempt, job_id=number)
        problem = _wait(store, backend, folder, number, wait)
    except (BackendUnavailable, BackendRefused) as error:
        problem = str(error)
    found = list(_told(cluster, folder, data))
    if problem:
        log = log_of(folder)
        return [*found, Finding("problem", "smoke", f"{problem}; log: {log or 'none'}")]
    shutil.rmtree(folder)
    return found


def _data_there(entries: Any, data: Path) -> Finding:
    if entries is None:
        here = data.is_dir()  # a folder that only the nodes lack is the cluster's fault
        told = f"{data} cannot be read there" + ("" if here else ", nor here: fetch the data first")
        return Finding("problem" if here else "warning", "data on the node", told)
    return Finding("ok", "data on the node", ", ".join(entries) or "an empty folder")


def smoke_profile(cluster: Cluster) -> Cluster:
    """The profile with a time limit of five minutes, and no second try."""
    return replace(cluster, time="5", grace=60, max_requeues=0)


def _wait(store: Store, backend: Backend, folder: Path, job: str, seconds: float) -> str:
    """Until the job's outcome is there; "" where it is done, else what went wrong."""
    end, alive, reason = time.monotonic() + seconds, time.monotonic(), "not started"
    while time.monotonic() < end:
        outcome = store.outcome(folder)
        if outcome is not None:
            return outcome.reason
        states = list(backend.query(store.attempts(folder)).values())
        if states and states[0].state != "dead":
            alive, reason = time.monotonic(), states[0].reason or states[0].state
        elif time.monotonic() - alive > GONE_SECONDS:
            return f"job {job} ended without an outcome"
        time.sleep(0.5)
    backend.cancel([job])
    return f"job {job} was not done in {seconds:.0f} s and is cancelled ({reason})"


def _told(cluster: Cluster, folder: Path, data: Path) -> Iterator[Finding]:
    """One line for each rank, then what they did together."""
    wants, told = cluster.of("smoke"), findings(folder)
    for rank, each in enumerate(told):
        visible = str(each["visible"])
        few = wants.gpus > 0 and wants.gpu_flag != "none" and not visible
        shown = f"CUDA_VISIBLE_DEVICES {visible or 'not set'}, computes on {each['device']}"
        yield Finding("problem" if few else "ok", f"rank {rank}", f"{each['node']}: {shown}")
    if told:
        kind = "NCCL" if wants.runs_on == "cuda" else "gloo"
        total = f"the sum over {wants.world} ranks is right"
        yield Finding("ok", "all-reduce", f"{kind}, {total}" if wants.world > 1 else "one rank")
        yield _data_there(told[0]["data"], data)
    if any((folder / "state").glob("step-*")):
        yield Finding("ok", "checkpoint", f"written and read in {folder.parent.parent}")
