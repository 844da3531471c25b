"""`harness why`: the class of each way to end, the line that shows it, and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.advice import ADVICE, explain
from harness.store import Outcome, Store, write_json

START = "submitit INFO (2026-01-01 00:00:00) - Starting with JobEnvironment(job_id=7)\n"
REQUEUED = (
    "stopped: preempted after update 8, saved\nback into the queue (preempted), time 1 of 3\n"
)
BY_USER = "slurmstepd-n1: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-01T00:00:00"
SAVED = "stopped: terminated after update 9, saved"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "runs/pretrain/mae-s0-0123456789"
    (place / "attempts/1").mkdir(parents=True)
    return place


def why(folder: Path, log: str, **job: str) -> list[str]:
    write_json(folder / "attempts/1/job.json", {"attempt": "1", "backend": "slurm", **job})
    if log:
        (folder / "attempts/1/7_0_log.out").write_text(log)
    return explain(Store(folder.parent.parent), folder).splitlines()


@pytest.mark.parametrize(
    ("reason", "line", "behind"),
    [
        ("timeout", f"{BY_USER} DUE TO TIME LIMIT ***", SAVED),
        ("memory", "slurmstepd-n1: error: Detected 1 oom_kill event in StepId=7.0. Some of", ""),
        ("memory", "srun: error: n1: task 0: Out Of Memory", f"{BY_USER} ***"),
        ("node", f"{BY_USER} DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***", ""),
        ("node", "srun: error: Node failure on n1", f"{BY_USER} ***"),
        ("preempted", f"{BY_USER} DUE TO PREEMPTION ***", SAVED),
        ("preempted too often", "not put back into the queue: that was done 3 times", SAVED),
        ("stopped", f"{BY_USER} ***", ""),
    ],
)
def test_a_job_that_left_no_outcome(folder: Path, reason: str, line: str, behind: str) -> None:
    told = why(folder, f"{START}{REQUEUED}{START}a word\n{line}\n{behind}\n", stopped="preempted")
    assert told[1:3] == [f"ended: {reason}: {line}", f"what to do: {ADVICE[reason]}"]


def test_what_ended_a_job_before_it_was_requeued_is_past(folder: Path) -> None:
    told = why(folder, f"{START}{REQUEUED}{BY_USER} DUE TO JOB REQUEUE ***\n")
    assert told[1].startswith("ended: preempted: ")
    told = why(folder, f"{START}{REQUEUED}{START}a word\n")
    assert told[1] == "has no outcome yet (see `harness status`)"


@pytest.mark.parametrize(
    ("word", "reason"), [("preempted", "preempted"), ("terminated", "stopped")]
)
def test_a_stage_that_saved_its_state_needs_no_log(folder: Path, word: str, reason: str) -> None:
    told = why(folder, "", stopped=f"{word} after update 8, saved")
    assert told[1] == f"ended: {reason}: {word} after update 8, saved"
    assert told[2] == f"what to do: {ADVICE[reason]}"


def failed(folder: Path, reason: str, message: str) -> None:
    error = {"reason": reason, "message": message}
    Store(folder.parent.parent).finish(folder, Outcome("failed", error=error))


def test_a_number_that_is_none_is_shown_beside_those_before_it(folder: Path) -> None:
    lines = [{"step": step, "time": 1.0, "loss": 10.0**step} for step in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in lines))
    failed(folder, "nan", "loss is nan at update 3")
    told = why(folder, "")
    assert told[1] == "failed: nan: loss is nan at update 3"
    assert told[2] == f"metrics.jsonl: {json.dumps(lines[1])}"


def test_an_error_of_one_rank_may_be_another_s_want_of_memory(folder: Path) -> None:
    failed(folder, "code", "RuntimeError: connection closed by peer")
    line = "slurmstepd-n1: error: Detected 1 oom-kill event(s) in StepId=7.0 cgroup."
    told = why(folder, f"{START}{line}\n")
    assert told[2:4] == [f"ended: memory: {line}", f"what to do: {ADVICE['memory']}"]
    told = why(folder, f"{START}{BY_USER} ***\n")
    assert told[2] == f"what to do: {ADVICE['code']}"
