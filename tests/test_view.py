"""What `harness status` shows of a stage at work: its job, its tries, and the time left."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.backends import JobState
from harness.reconcile import Decision, failures
from harness.spent import spent
from harness.store import Outcome, write_json
from harness.view import line, row, seconds_left


def running(folder: Path, job: JobState) -> Decision:
    stage = SimpleNamespace(path="pretrain/mae-s0-0123456789")
    state = "running" if job.state == "running" else "queued"
    return Decision(stage, folder, state, job.reason, job=job)  # type: ignore[arg-type]


def test_a_running_stage_tells_its_job_its_node_and_how_often_it_came_back(tmp_path: Path) -> None:
    lines = [{"step": step, "time": 10.0 * step, "progress": step / 10} for step in (1, 2, 3)]
    text = "".join(json.dumps({**each, "loss": 0.5}) + "\n" for each in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 4, "ti')
    write_json(tmp_path / "owner.json", {"job": "12.2@node7"})
    cells = row(running(tmp_path, JobState("running", "12", "running", "node7")))
    assert (cells["job"], cells["node"]) == ("12", "node7")
    assert cells["attempt"] == "1 of 3, requeued 2x"
    assert (cells["step"], cells["loss"]) == ("3 (30%)", "0.5000")
    told = line(running(tmp_path, JobState("running", "13", "running", "node7")))
    assert "job 13  node node7  attempt 1 of 3  step" in told  # the requeues were another job's


def test_a_queued_stage_tells_the_schedulers_reason(tmp_path: Path) -> None:
    told = line(running(tmp_path, JobState("queued", "12", "Resources")))
    assert told.split()[:2] == ["queued", "pretrain/mae-s0-0123456789"]
    assert told.endswith("job 12  attempt 1 of 3  Resources")


def test_time_left_follows_the_pace_of_the_last_lines() -> None:
    lines = [{"step": k, "time": 100.0 + 10 * k, "progress": 0.1 * k} for k in (2, 3, 4)]
    assert seconds_left(lines, now=140.0) == pytest.approx(60.0)
    assert seconds_left(lines, now=150.0) == pytest.approx(50.0)
    assert seconds_left(lines, now=9999.0) == 0.0
    assert seconds_left(lines[:1], now=140.0) is None
    assert seconds_left([{"step": 1}, {"step": 2}], now=140.0) is None


def test_only_failures_of_its_own_count_as_tries(tmp_path: Path) -> None:
    for name, reason in (("a", "needs"), ("b", "nan"), ("c", "code")):
        (tmp_path / "attempts" / name).mkdir(parents=True)
        outcome = {"status": "failed", "error": {"reason": reason, "message": ""}}
        write_json(tmp_path / "attempts" / name / "outcome.json", outcome)
    assert failures(tmp_path) == 2
    write_json(tmp_path / "outcome.json", {"status": "done"})
    assert failures(tmp_path) == 2


def finished(kind: str, **cost: float) -> Decision:
    outcome = Outcome(status="done", cost=cost)
    return Decision(SimpleNamespace(kind=kind), Path(), "done", "", outcome=outcome)  # type: ignore[arg-type]


def test_where_the_time_went_tells_training_from_the_rest() -> None:
    trained = {"images": 900.0, "images_per_second": 10.0}
    told = spent(
        [
            finished("linear", seconds=120.0, **trained),
            finished("pretrain", seconds=100.0, **trained),
            finished("linear", seconds=180.0, **trained),
            finished("knn", seconds=20.0),
            running(Path(), JobState("running", "12")),
        ]
    )
    assert [" ".join(text.split()) for text in told] == [
        "pretrain 1 stage 1m40s 90% of it training",
        "linear 2 stages 5m00s 60% of it training",
        "knn 1 stage 20s 0% of it training",
        "together 4 stages 7m00s 64% of it training",
    ]
    assert spent([running(Path(), JobState("running", "12"))]) == []
