"""What happens to stages that are told to leave, preempted, cancelled, or lose node or controller.

Each step must count once however a stage was interrupted, and only lost work is submitted again.
"""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from counting import Counting
from lab import Lab, until

from harness.backends import BackendUnavailable

MakeLab = Callable[..., Lab]


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Any]:
    """A parent that waits after step 6, with step 4 saved last, and its child."""
    parent = Counting("parent", save=4, hold=str(tmp_path / "go"))
    return {"parent": (parent, []), "child": (Counting("child"), ["parent"])}


def finish_by_itself(lab: Lab, starts: int) -> None:
    """The parent begins for the given time, and both end without another `harness run`."""
    until(lambda: len(lab.starts("parent")) == starts, f"start {starts} of the parent")
    lab.release("parent")
    until(lab.all_done, "parent and child are done")
    lab.assert_counted_once()
    for name in lab.stages:
        assert len(lab.store.attempts(lab.folder(name))) == 1, lab.log(name)


def redone(lab: Lab) -> int:
    outcome = lab.store.outcome(lab.folder("parent"))
    assert outcome is not None
    return outcome.redone_steps


@pytest.mark.parametrize("number", ["USR2", "TERM"])
def test_a_signal_saves_and_requeues_while_the_child_waits(
    make_lab: MakeLab, pair: dict[str, Any], number: str
) -> None:
    lab = make_lab(pair)
    lab.run()
    job = lab.held("parent")
    lab.slurm.call("scancel", f"--signal={number}", job.job)
    finish_by_itself(lab, starts=2)
    first, second = lab.starts("parent")
    assert first == f"{job.job}.0@{job.node} 0"
    assert second.startswith(f"{job.job}.1@")
    assert second.endswith(" 6")
    assert redone(lab) == 0


def test_requeues_are_bounded_and_the_next_run_goes_on(
    make_lab: MakeLab, pair: dict[str, Any]
) -> None:
    lab = make_lab(pair, max_requeues=0)
    lab.run()
    job = lab.held("parent")
    lab.slurm.call("scancel", "--signal=USR2", job.job)
    until(lambda: not any(map(lab.live, lab.stages)), "both jobs are gone")
    assert "not put back into the queue" in lab.log("parent")
    assert not lab.done("parent")
    lab.release("parent")
    assert lab.run() == 2
    until(lab.all_done, "parent and child are done")
    lab.assert_counted_once()
    assert redone(lab) == 0


def test_a_preempted_stage_comes_back_and_its_child_waits(
    make_lab: MakeLab, pair: dict[str, Any]
) -> None:
    wants = {"partition": "preemptible", "gpus": 4, "tasks": 1, "sbatch": {"nodelist": "dev1"}}
    lab = make_lab(pair, **wants)
    lab.run()
    lab.held("parent")
    other = ("-p", "gpu", "-w", "dev1", "--gpus-per-node=4", "-o", "/dev/null")
    sent = lab.slurm.call("sbatch", *other, "--wrap", "sleep 1")
    assert sent.returncode == 0, sent.stderr
    finish_by_itself(lab, starts=2)
    assert redone(lab) == 0


def test_cancelled_stages_keep_their_work_and_start_only_when_asked(
    make_lab: MakeLab, pair: dict[str, Any]
) -> None:
    lab = make_lab(pair)
    lab.run()
    lab.backend.cancel([lab.held("parent").job])
    until(lambda: not any(map(lab.live, lab.stages)), "both jobs are gone")
    assert not lab.done("parent")
    lab.release("parent")
    assert lab.run() == 2
    until(lab.all_done, "parent and child are done")
    lab.assert_counted_once()
    assert lab.starts("parent")[-1].endswith(" 6")  # saved when it was told to leave
    assert len(lab.starts("child")) == 1


def test_a_requeue_by_hand_resumes(make_lab: MakeLab, pair: dict[str, Any]) -> None:
    lab = make_lab(pair)
    lab.run()
    lab.slurm.call("scontrol", "requeue", lab.held("parent").job)
    finish_by_itself(lab, starts=2)


def test_a_node_that_crashes_costs_what_was_not_saved(
    make_lab: MakeLab, pair: dict[str, Any]
) -> None:
    lab = make_lab(pair)
    lab.run()
    job = lab.held("parent")
    lab.slurm.crash_node(job.node)
    # Slurm finds out by itself after twice SlurmdTimeout; an operator who sees it does not wait.
    lab.slurm.call("scontrol", "update", f"NodeName={job.node}", "State=DOWN", "Reason=crash")
    finish_by_itself(lab, starts=2)
    assert redone(lab) == 2
    assert job.node not in lab.starts("parent")[-1]


def test_of_two_copies_of_a_stage_the_newer_owns_it(
    make_lab: MakeLab, pair: dict[str, Any]
) -> None:
    """The node's slurmd dies and its job lives on, while Slurm starts the job on another node."""
    lab = make_lab(pair)
    lab.run()
    job = lab.held("parent")
    lab.slurm.stop_daemon(f"slurmd-{job.node}", signal.SIGKILL)
    lab.slurm.call("scontrol", "update", f"NodeName={job.node}", "State=DOWN", "Reason=lost")
    finish_by_itself(lab, starts=2)
    until(lambda: "now belongs to" in lab.log("parent"), "the first copy has left")
    owner = json.loads((lab.folder("parent") / "owner.json").read_text())
    assert owner["job"] == lab.starts("parent")[-1].split()[0]


def test_a_restarted_controller_loses_nothing(make_lab: MakeLab, pair: dict[str, Any]) -> None:
    lab = make_lab(pair)
    lab.run()
    lab.held("parent")
    lab.slurm.stop_daemon("slurmctld")
    with pytest.raises(BackendUnavailable):
        lab.run()  # nothing is known, so nothing is submitted
    lab.slurm.start_daemon("slurmctld")
    finish_by_itself(lab, starts=1)


def test_submissions_lost_by_a_killed_controller_are_made_again(
    make_lab: MakeLab, pair: dict[str, Any]
) -> None:
    """slurmctld writes its state every few seconds: jobs accepted just before its end are gone, and
    their numbers are given out again."""
    lab = make_lab({**pair, "second": (Counting("second"), ["child"])})
    lab.run()
    lab.slurm.stop_daemon("slurmctld", signal.SIGKILL)
    lab.slurm.start_daemon("slurmctld")
    lab.release("parent")
    lab.finish()
    lab.assert_counted_once()
