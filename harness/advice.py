"""Why a stage ended as it did, the line that shows it, and what to do about it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from harness.liveness import state_of
from harness.store import Outcome, Store
from harness.view import duration, log_of, recent_metrics
from methods.engine.work import read_alarms

ADVICE = {
    "data": "mend or fetch the file that the message names; `harness run` then goes on",
    "needs": "run the stage that it needs first: `harness run` does so in order",
    "nan": "look at the loss in metrics.jsonl; lower the learning rate, or use bf16 or fp32",
    "teacher": "give the teacher more epochs, or fetch a released one: nothing learns from noise",
    "codebook": "give the tokenizer a larger batch for its k-means start, or fewer codes",
    "memory": "lower device_batch in the cluster profile (no number changes), or ask for more",
    "disk": "make space or make the store writable; `harness run` goes on from the checkpoint",
    "layout": "choose nodes, GPUs and device_batch so that they divide the global batch",
    "weights": "fetch the file that the message names and place it where it says",
    "code": "this is an error in the program; the log has the whole traceback",
    "killed": "see what sent the signal; `harness run` goes on from the last checkpoint",
    "timeout": "ask for more time (--time); `harness run` goes on from the last checkpoint",
    "node": "`harness run` goes on from the last checkpoint; shun the node (--sbatch exclude=NODE)",
    "preempted": "it saved its state; Slurm starts it again, or `harness run` goes on from there",
    "preempted too often": "raise max_requeues in the cluster profile, ask for more time, or choose"
    " a partition that preempts less; `harness run` goes on from the last checkpoint",
    "stopped": "it was asked to stop and saved its state; `harness run` goes on from there",
}
# What Slurm and our own jobs write into a log of why they end, the surest sign first.
SIGNS = {
    "preempted too often": r"^not put back into the queue",
    "memory": r"\boom[-_]kill|Out Of Memory|OUT_OF_MEMORY",
    "timeout": r"DUE TO TIME LIMIT",
    "node": r"NODE[ _]FAIL|Node failure",
    "preempted": r"DUE TO (PREEMPTION|JOB REQUEUE)|^stopped: preempted|^back into the queue",
    "stopped": r"CANCELLED AT|^stopped: ",
}
BEGINNING = "Starting with JobEnvironment"  # submitit's, when a job starts, or starts again


def explain(store: Store, folder: Path) -> str:
    """A few lines for `harness why KEY`."""
    outcome, log = store.outcome(folder), log_of(folder)
    told = [f"{folder.parent.name}/{folder.name}"]
    if outcome is None:
        told += _unfinished(store, folder, log)
    elif outcome.done:
        seconds = float(outcome.cost.get("seconds", 0.0))
        told.append(f"done in {duration(seconds)}, resumed {outcome.resumed} times")
    else:
        told += _failure(outcome, folder, log)
    told += [f"alarm: {each}" for each in (outcome.alarms if outcome else read_alarms(folder))]
    if log is not None:
        told.append(f"log: {log}")
        if outcome is not None and not outcome.done:
            told += [f"  | {line}" for line in _tail(log)]
    return "\n".join(told)


def _failure(outcome: Outcome, folder: Path, log: Path | None) -> list[str]:
    reason = (outcome.error or {}).get("reason", "code")
    told = [f"failed: {outcome.reason}"]
    if reason == "nan":
        told += [f"metrics.jsonl: {json.dumps(line)}" for line in recent_metrics(folder)[-1:]]
    sign = _sign(log)
    # The rank that wrote the outcome may only have missed another one.
    if reason == "code" and sign is not None and sign[0] in ("memory", "node", "timeout"):
        return [*told, *_because(*sign)]
    return [*told, f"what to do: {ADVICE.get(reason, ADVICE['code'])}"]


def _unfinished(store: Store, folder: Path, log: Path | None) -> list[str]:
    attempts = store.attempts(folder)
    if not attempts:
        return ["no attempt has begun"]
    if (sign := _sign(log)) is not None:
        return _because(*sign)
    stopped = str(attempts[-1].get("stopped") or "")
    if not stopped or state_of(store, folder.name.rpartition("-")[2]) == "running":
        return ["has no outcome yet (see `harness status`)"]
    return _because("preempted" if stopped.startswith("preempted") else "stopped", stopped)


def _because(reason: str, line: str) -> list[str]:
    line = line.removeprefix("stopped: ")
    return [f"ended: {reason}: {line}", f"what to do: {ADVICE[reason]}"]


def _sign(log: Path | None) -> tuple[str, str] | None:
    """Why the job says that it ended, and the line in which it does; None where it says nothing."""
    text = log.read_text(errors="replace") if log is not None else ""
    lines = text.rpartition(BEGINNING)[2].splitlines()
    for reason, pattern in SIGNS.items():
        for line in reversed(lines):
            if re.search(pattern, line):
                return reason, line
    return None


def _tail(log: Path) -> list[str]:
    text = log.read_text(errors="replace").splitlines()
    return [line for line in text if line.strip() and "submitit" not in line][-6:]
