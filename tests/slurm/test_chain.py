"""Chains of stages on the real cluster: dependencies, failures, and what is submitted again."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from counting import Counting
from lab import Lab, until

from harness.backends import Attempt, BackendRefused

MakeLab = Callable[..., Lab]


def chain(hold: str = "", fails: str = "") -> dict[str, Any]:
    """a -> b -> {c, d}; a waits for the file `hold`, b fails while the file `fails` exists."""
    return {
        "a": (Counting("a", hold=hold), []),
        "b": (Counting("b", fails=fails), ["a"]),
        "c": (Counting("c"), ["b"]),
        "d": (Counting("d"), ["b"]),
    }


def test_a_chain_runs_by_itself_and_equal_commands_submit_once(
    make_lab: MakeLab, tmp_path: Path
) -> None:
    lab = make_lab(chain(hold=str(tmp_path / "go")))
    assert lab.run() == 4
    running = lab.held("a")
    assert running.node in lab.slurm.nodes
    names = lab.slurm.call("squeue", "-h", "-o", "%j").stdout.split()
    assert {stage.path for stage in lab.stages.values()} <= set(names)
    waiting = lab.live("b")
    assert waiting is not None
    assert (waiting.state, waiting.reason) == ("queued", "Dependency")
    assert lab.run() == 0  # queued and running stages are left alone
    lab.release("a")
    until(lab.all_done, "the chain is done")
    lab.assert_counted_once()
    assert lab.run() == 0
    for name in lab.stages:
        assert len(lab.store.attempts(lab.folder(name))) == 1
        assert len(lab.starts(name)) == 1


def test_a_failed_stage_ends_what_needs_it_and_is_submitted_again(
    make_lab: MakeLab, tmp_path: Path
) -> None:
    blocker = tmp_path / "broken"
    blocker.touch()
    lab = make_lab(chain(fails=str(blocker)))
    lab.run()
    until(lambda: not any(lab.live(name) for name in lab.stages), "nothing is left in the queue")
    failed = lab.store.outcome(lab.folder("b"))
    assert failed is not None
    assert failed.reason == f"data: {blocker}: there it is"
    assert lab.done("a")
    assert lab.starts("c") == lab.starts("d") == []
    blocker.unlink()
    assert lab.run() == 3
    until(lab.all_done, "the chain is done")
    lab.assert_counted_once()
    assert len(lab.store.attempts(lab.folder("a"))) == 1


def test_a_stage_does_not_trust_that_its_need_is_done(make_lab: MakeLab) -> None:
    """`afterok` on a job that Slurm has forgotten is accepted, and the job runs."""
    lab = make_lab({"a": (Counting("a"), []), "b": (Counting("b"), ["a"])})
    folder = lab.store.add(lab.stages["b"], {})
    attempt = lab.store.begin_attempt(folder, lab.cluster.job("counting"))
    lab.backend.submit(Attempt(attempt, folder, "counting", "b", ("99999",), lab.code))
    outcome = until(lambda: lab.store.outcome(lab.folder("b")), "b has ended")
    assert outcome.reason.startswith("needs: a (")


def test_a_job_that_was_never_recorded_is_adopted(make_lab: MakeLab, tmp_path: Path) -> None:
    """`harness run` was killed between sbatch and writing down the job's number."""
    lab = make_lab(
        {"a": (Counting("a", hold=str(tmp_path / "go")), []), "b": (Counting("b"), ["a"])}
    )
    folder = lab.store.add(lab.stages["a"], {})
    attempt = lab.store.begin_attempt(folder, lab.cluster.job("counting"))
    job = lab.backend.submit(Attempt(attempt, folder, "counting", "a", code=lab.code))
    assert lab.run() == 1  # b, behind the job that nobody wrote down
    assert lab.held("a").job == job
    lab.release("a")
    until(lab.all_done, "both are done")
    lab.assert_counted_once()
    assert len(lab.store.attempts(folder)) == len(lab.starts("a")) == 1


def test_a_refusal_is_told_in_slurms_words_and_leaves_nothing(make_lab: MakeLab) -> None:
    lab = make_lab(chain(), gpus=5)
    with pytest.raises(BackendRefused, match="node configuration is not available"):
        lab.run()
    assert lab.store.attempts(lab.folder("a")) == []


def test_max_submitted_holds_back_the_rest_for_the_next_run(make_lab: MakeLab) -> None:
    lab = make_lab(chain(), max_submitted=2)
    with pytest.raises(BackendRefused, match="max_submitted = 2 .*; 2 jobs were submitted before"):
        lab.run()
    assert len(lab.store.attempts(lab.folder("c"))) == 0

    until(lab.runs_out, "the chain is done")
    lab.assert_counted_once()


def test_jobs_inherit_a_short_list_of_variables(
    make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "do not tell")
    seen = tmp_path / "environment"
    lab = make_lab(
        {"a": (Counting("a"), [])},
        gpus=2,
        environment={"GREETING": "good 'day'"},
        setup=("env > " + str(seen),),
    )
    lab.run()
    until(lab.all_done, "the stage is done")
    told = seen.read_text()
    assert "SECRET_TOKEN" not in told
    assert f"PATH={os.environ['PATH']}\n" in told
    script = next((lab.folder("a") / "attempts").glob("*/*_submission.sh")).read_text()
    assert "do not tell" not in script
    assert """export GREETING='good '"'"'day'"'"''""" in script
