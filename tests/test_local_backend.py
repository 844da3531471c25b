"""Attempts on this machine: forked from one process, and told when that one cannot start."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from harness.backends import Attempt, BackendUnavailable
from harness.backends.local import LocalBackend
from harness.drive import stages_behind
from harness.plan import make_plan
from harness.store import write_json
from harness.study import load_scale, load_study


def attempt(folder: Path, code: Path | None = None) -> Attempt:
    made = Attempt("first", folder / "runs/linear/mae-s0-0123456789", "linear", "mae", (), code)
    made.place.mkdir(parents=True)
    write_json(made.place / "job.json", {"backend": "local"})
    return made


def about(made: Attempt, job: str) -> dict[str, object]:
    from harness import provenance

    return {"attempt": made.id, "job_id": job, "host": provenance.host()}


def test_an_attempt_is_known_while_it_lives_and_leaves_a_log(tmp_path: Path) -> None:
    backend, made = LocalBackend(), attempt(tmp_path)
    job = backend.submit(made)
    seen = []
    until = time.monotonic() + 60
    while "dead" not in seen and time.monotonic() < until:
        seen.append(backend.query([about(made, job)])["first"].state)
        time.sleep(0.02)
    assert seen[0] == "running" and seen[-1] == "dead"
    (log,) = made.place.glob("*.out")
    assert f"job_id={job.partition('.')[0]}" in log.read_text()


def test_it_is_a_process_of_its_own_that_ctrl_c_does_not_reach(tmp_path: Path) -> None:
    backend, made = LocalBackend(), attempt(tmp_path)
    pid = int(backend.submit(made).partition(".")[0])
    assert os.getsid(pid) != os.getsid(0)
    backend.cancel([f"{pid}.other"])  # the number has come again: not the job that was meant
    assert os.getsid(pid) != os.getsid(0)


def test_code_that_cannot_be_imported_is_told_in_a_line(tmp_path: Path) -> None:
    code = tmp_path / "code"
    (code / "harness/backends").mkdir(parents=True)
    (code / "harness/__init__.py").write_text("raise ImportError('no such thing as torch')")
    with pytest.raises(BackendUnavailable, match="no such thing as torch"):
        LocalBackend().submit(attempt(tmp_path, code))


def test_the_longest_chain_of_the_comparison_goes_first() -> None:
    plan = make_plan(load_study("comparison"), load_scale("mini"), ())
    behind = stages_behind(plan)
    by_name = {stage.path.rpartition("-")[0]: behind[key] for key, stage in plan.stages.items()}
    assert by_name["teacher/clip"] == 3 and by_name["tokenizer/vqkd"] == 2
    assert by_name["pretrain/mae-s0"] == 1 and by_name["linear/mae-s0"] == 0
