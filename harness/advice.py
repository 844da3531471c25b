"""Why a stage ended as it did, the line that shows it, and what to do about it."""

from __future__ import annotations

from pathlib import Path

from harness.store import Outcome, Store
from harness.view import duration, log_of
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
    "stopped": "it was asked to stop and saved its state; `harness run` goes on from there",
}


def explain(store: Store, folder: Path) -> str:
    """A few lines for `harness why KEY`."""
    outcome, log = store.outcome(folder), log_of(folder)
    told = [f"{folder.parent.name}/{folder.name}"]
    if outcome is None:
        told.append(_unfinished(store, folder))
    elif outcome.done:
        seconds = float(outcome.cost.get("seconds", 0.0))
        told.append(f"done in {duration(seconds)}, resumed {outcome.resumed} times")
    else:
        told += _failure(outcome)
    told += [f"alarm: {each}" for each in (outcome.alarms if outcome else read_alarms(folder))]
    if log is not None:
        told.append(f"log: {log}")
        if outcome is not None and not outcome.done:
            told += [f"  | {line}" for line in _tail(log)]
    return "\n".join(told)


def _failure(outcome: Outcome) -> list[str]:
    reason = (outcome.error or {}).get("reason", "code")
    return [f"failed: {outcome.reason}", f"what to do: {ADVICE.get(reason, ADVICE['code'])}"]


def _unfinished(store: Store, folder: Path) -> str:
    attempts = store.attempts(folder)
    if not attempts:
        return "no attempt has begun"
    stopped = attempts[-1].get("stopped")
    return f"stopped: {stopped}" if stopped else "has no outcome yet (see `harness status`)"


def _tail(log: Path, lines: int = 6) -> list[str]:
    text = log.read_text(errors="replace").splitlines()
    return [line for line in text if line.strip() and "submitit" not in line][-lines:]
