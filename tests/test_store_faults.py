"""Faults of the store and of the machines around it, injected under stages that really run."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from kill_trials import Trials, lines

from harness import provenance
from harness.backends.local import LocalBackend
from harness.cli import main
from harness.drive import LocalRun
from harness.plan import Plan, make_plan
from harness.reconcile import Decision, about_stage, decide, failures, live_jobs, open_attempt
from harness.stage import Stage
from harness.store import Outcome, Store
from harness.study import load_scale, load_study
from methods.engine.work import Work

MAE = {"optimisation.epochs": 12}  # 60 updates, so that there is time for a fault


def planned(changes: Mapping[str, Any]) -> Plan:
    """MAE's pretraining and its linear probe at the tiny scale."""
    study = dataclasses.replace(load_study("comparison"), references=(), evals=("linear",))
    return make_plan(study.only(("mae",)), load_scale("tiny"), changes)


@pytest.fixture
def plan() -> Plan:
    return planned({})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs").create()


@pytest.fixture(scope="module")
def backend() -> LocalBackend:
    """One for all tests, whose stages then need not import torch."""
    return LocalBackend()


@pytest.fixture
def start(store: Store, data: Path, backend: LocalBackend) -> Callable[..., LocalRun]:
    """What `harness run` makes of a plan in this store."""
    plan_data = load_scale("tiny").data
    plan_data.prepare(data)

    def make(plan: Plan, at: Store = store) -> LocalRun:
        job = {"backend": "local", "host": provenance.host(), "data": str(data)}
        job["checkpoint_seconds"] = 0.2  # type: ignore[assignment]
        return LocalRun(at, plan, backend, 2, lambda kind: job, {}, None)  # type: ignore[arg-type]

    return make


def stage_of(plan: Plan, kind: str) -> Stage:
    return next(stage for stage in plan.stages.values() if stage.kind == kind)


def when_it_trains(folder: Path, act: Callable[[], None]) -> Callable[..., None]:
    """Shows nothing; acts once, as soon as the stage in `folder` has logged three updates."""
    waiting = [act]

    def show(_: Mapping[str, Decision]) -> None:
        if waiting and len(lines(folder)) >= 3:
            waiting.pop()()

    return show


def states(decisions: Mapping[str, Decision]) -> dict[str, str]:
    return {each.stage.kind: each.state for each in decisions.values()}


def test_a_folder_removed_under_a_running_stage(
    store: Store, start: Callable[..., LocalRun], capfd: Any
) -> None:
    plan = planned(MAE)
    folder = store.folder(stage_of(plan, "pretrain"))
    moved = store.root / "kept"
    logs: list[Path] = []

    def remove() -> None:
        folder.rename(moved)  # its log is still written to, where a test can read it
        logs.extend(moved.glob("attempts/*/*_log.out"))

    decisions = start(plan).until_settled(when_it_trains(folder, remove))
    assert states(decisions) == {"pretrain": "failed", "linear": "blocked"}
    assert decisions[stage_of(plan, "pretrain").key].why == "its folder was removed"
    until(lambda: "disk: " in logs[0].read_text(), "the stage has ended")
    told = logs[0].read_text()
    assert "was removed under the running stage" in told and "Traceback" not in told
    assert not folder.exists()


def test_a_stage_that_is_asked_to_stop_has_not_failed(
    store: Store, start: Callable[..., LocalRun], capsys: Any
) -> None:
    """By somebody else than the driver, as by `harness cancel` in another terminal."""
    plan = planned(MAE)
    folder = store.folder(stage_of(plan, "pretrain"))

    def stop() -> None:
        os.kill(json.loads((folder / "owner.json").read_text())["pid"], signal.SIGTERM)

    decisions = start(plan).until_settled(when_it_trains(folder, stop))
    found = decisions[stage_of(plan, "pretrain").key]
    assert (found.state, found.why, found.outcome) == ("failed", "stopped", None)
    assert failures(folder) == 0
    assert command("why", folder.name, "--store", store.root) == 0
    assert "ended: stopped: terminated after update" in capsys.readouterr().out


def until(condition: Callable[[], Any], what: str, seconds: float = 120.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"{what}: not in {seconds} s"
        time.sleep(0.02)


def test_two_runs_at_once_have_one_live_job_a_stage(
    store: Store, plan: Plan, start: Callable[..., LocalRun]
) -> None:
    """Each looks and submits in turn, as two machines do that share the store and its lock."""
    first, second = start(plan), start(plan)

    def both() -> bool:
        found = [states(each.step()) for each in (first, second)]
        assert all("failed" not in each.values() for each in found)
        return all(set(each.values()) == {"done"} for each in found)

    until(both, "both runs are done")
    for stage in plan.stages.values():
        assert len(store.attempts(store.folder(stage))) == 1
    assert len(first.tried) + len(second.tried) == 2


def test_a_run_killed_before_it_recorded_its_job(
    store: Store, start: Callable[..., LocalRun]
) -> None:
    """The next one finds the stage at work and waits for it."""
    plan = planned(MAE)
    killed = start(plan)
    stage = stage_of(plan, "pretrain")
    decision = decide(store, plan, {})[stage.key]
    attempt = open_attempt(store, decision, about_stage(plan, stage, {}), killed.job("pretrain"))
    job = killed.backend.submit(attempt)
    state = live_jobs(store, plan, LocalBackend())[stage.key]
    assert (state.state, state.job) == ("running", job)
    assert set(states(start(plan).until_settled(lambda _: None)).values()) == {"done"}
    assert len(store.attempts(attempt.folder)) == 1


def test_a_copied_store_reports_and_resumes_by_itself(
    store: Store, data: Path, tmp_path: Path, backend: LocalBackend
) -> None:
    """Copied while the stage runs: the copy waits for nothing, and ends with the same numbers."""
    plan = planned(MAE)
    stage = stage_of(plan, "pretrain")
    trials = Trials(store, data, random.Random(1), backend=backend)
    folder = store.add(stage, {})
    elsewhere = Store(tmp_path / "elsewhere")

    def copied() -> bool:
        if len(lines(folder)) < 5:
            return False
        ignored = shutil.ignore_patterns(".*")  # what is being written just now
        shutil.copytree(store.root, elsewhere.root, ignore=ignored)
        assert live_jobs(store, plan, LocalBackend())
        assert not live_jobs(elsewhere, plan, LocalBackend())
        return True

    assert trials.attempt(stage, folder, 0.0, copied)
    copy = elsewhere.folder(stage)
    assert decide(elsewhere, plan, {})[stage.key].why == "goes on from its last checkpoint"
    second = Trials(elsewhere, data, random.Random(2), backend=backend)
    for each, at in ((trials, folder), (second, copy)):
        each.attempt(stage, at, 600.0, None)
    assert lines(copy) == lines(folder) and len(lines(copy)) == 60
    weights = [(at / "encoder.safetensors").read_bytes() for at in (folder, copy)]
    assert weights[0] == weights[1]


def test_a_clock_that_was_put_back(store: Store, plan: Plan) -> None:
    stage = stage_of(plan, "pretrain")
    folder = store.add(stage, {})
    future = folder / "attempts" / "20990101-000000-abcdef"
    future.mkdir(parents=True)
    (future / "job.json").write_text(json.dumps({"attempt": future.name, "host": "elsewhere"}))
    newer = store.begin_attempt(folder, {"host": "elsewhere"})
    assert [each["attempt"] for each in store.attempts(folder)] == [future.name, newer]
    owner = folder / "owner.json"
    owner.write_text("{}")
    os.utime(owner, (time.time() + 3600, time.time() + 3600))
    assert live_jobs(store, plan, LocalBackend()) == {}  # no sign of life of an hour ahead


def test_a_host_that_changes_its_name(
    store: Store, plan: Plan, start: Callable[..., LocalRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was begun under another name goes on once its sign of life is old."""
    folder = store.add(stage_of(plan, "pretrain"), {})
    store.begin_attempt(folder, {"backend": "local", "host": "old-name", "job_id": "1.1"})
    owner = folder / "owner.json"
    owner.write_text(json.dumps({"host": "old-name", "pid": 1, "token": "t"}))
    assert live_jobs(store, plan, LocalBackend())
    os.utime(owner, (time.time() - 90, time.time() - 90))
    assert set(states(start(plan).until_settled(lambda _: None)).values()) == {"done"}
    assert len(store.attempts(folder)) == 2


@pytest.fixture
def read_only(comparison: Path, tmp_path: Path) -> Iterator[Path]:
    """The comparison's store on a file system that takes no writes."""
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    command = ["mount", "--bind", str(comparison / "runs"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(tmp_path)], check=True)
        yield tmp_path
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def command(*words: object) -> Any:
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    return left.value.code


def test_a_read_only_store_is_shown_and_not_run(
    read_only: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = ("--store", read_only, "--scale", "tiny")
    assert command("run", *at) == 2
    told = capsys.readouterr().err
    assert told == f"error: --store {read_only}: not writable (Read-only file system)\n"
    assert command("status", *at) == 0
    stages, _, spent = capsys.readouterr().out.partition("teacher  ")
    assert (
        all(line.startswith("done") for line in stages.splitlines()) and "of it training" in spent
    )
    assert command("report", *at) == 0
    assert "| milan" in capsys.readouterr().out
    (folder,) = (read_only / "pretrain").glob("mae-*")
    with pytest.raises(Exception, match="metrics.jsonl: Read-only file system") as raised:
        Work(folder).log(1, loss=1.0)
    assert getattr(raised.value, "reason", "") == "disk"


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_clean_removes_nothing_that_a_pending_stage_needs(
    comparison: Path, data: Path, tmp_path: Path, backend: LocalBackend, capsys: Any
) -> None:
    """Of stages that are done the checkpoints go, and all that was missing still runs."""
    store = Store(tmp_path / "runs")
    shutil.copytree(comparison / "runs", store.root)
    plan = make_plan(load_study("comparison"), load_scale("tiny"))
    for kind in ("pretrain", "linear"):  # to be done again, from CLIP and by its own checkpoint
        stage = next(s for s in plan.stages.values() if (s.kind, s.label) == (kind, "milan-s0"))
        (store.folder(stage) / "outcome.json").unlink()
    pending = store.folder(stage)
    unfinished = {f"{pending.parent.name}/{pending.name}"}
    unfinished |= {f"pretrain/{next((store.root / 'pretrain').glob('milan-*')).name}"}
    before = contents(store.root)
    assert command("clean", "--store", store.root) == 0
    removed = before.keys() - contents(store.root).keys()
    assert removed and all(Path(each).parts[2] == "state" for each in removed)
    assert not any("/".join(Path(each).parts[:2]) in unfinished for each in removed)
    job = {"backend": "local", "host": provenance.host(), "data": str(data)}
    run = LocalRun(store, plan, backend, 2, lambda kind: job, {}, None)  # type: ignore[arg-type]
    assert {each.state for each in run.until_settled(lambda _: None).values()} == {"done"}
    assert len(run.tried) == 2
    command("clean", "--store", store.root, "--dry-run")
    assert "could be freed" in capsys.readouterr().out


def test_a_damaged_file_of_a_stage_is_one_line_and_exit_code_2(
    store: Store, plan: Plan, capsys: Any
) -> None:
    """Through the command line; tests/test_any_text.py tries thousands of texts."""
    store.write_plan("comparison-tiny", {**plan.records(), "command": ["harness", "run"]})
    folder = store.add(stage_of(plan, "pretrain"), {})
    store.begin_attempt(folder, {"backend": "local"})
    (job,) = (folder / "attempts").glob("*/job.json")
    damages = {
        folder / "outcome.json": [b"", b"{", b"[1]", b"\xff\xfe", b'{"status": "x"}', b"[" * 9000],
        folder / "stage.json": [b"{}", b"\xef\xbb\xbf{}", b"nan"],
        job: [b"{", b"[]"],
        store.root / "studies" / "comparison-tiny.json": [b"{}", b'{"study": 1}', b"\x00"],
    }  # fmt: skip
    rows = ("--store", store.root, "--scale", "tiny")
    mine = (*rows, "--methods", "mae", "--evals", "linear")
    for path, contents in damages.items():
        whole = path.read_bytes() if path.exists() else b""
        words = {"stage.json": ("diff", folder.name, folder.name, "--store", store.root)}.get(
            path.name, ("report", *rows) if path.parent.name == "studies" else ("status", *mine)
        )
        for content in contents:
            path.write_bytes(content)
            assert command(*words) == 2, (path, content)
            told = capsys.readouterr().err
            assert told.startswith("error: ") and path.name in told and told.count("\n") == 1
        path.write_bytes(whole) if whole else path.unlink()


def test_alarms_are_shown_wherever_a_stage_is(store: Store, plan: Plan, capsys: Any) -> None:
    """Also those of attempts that were killed."""
    store.write_plan("comparison-tiny", {**plan.records(), "command": ["harness", "run"]})
    stage = stage_of(plan, "pretrain")
    folder = store.add(stage, {})
    attempt = store.begin_attempt(folder, {"backend": "local", "host": provenance.host()})
    for text in ("the loss does not move", "the loss does not move", "a <b> second"):
        Work(folder, alarms=[]).alarm(text)
    words = ("--store", store.root, "--scale", "tiny")
    assert command("why", folder.name, "--store", store.root) == 0
    assert "alarm: the loss does not move" in capsys.readouterr().out
    store.finish(folder, Outcome("done", attempt=attempt, alarms=("the loss does not move", "<b>")))
    assert command("status", *words, "--methods", "mae", "--evals", "linear") == 0
    assert "alarm: the loss does not move (and 1 more)" in capsys.readouterr().out
    assert command("report", *words) == 0
    assert "- Alarm in pretrain/mae-s0: the loss does not move" in capsys.readouterr().out
    assert command("report", *words, "--format", "html") == 0
    page = capsys.readouterr().out
    assert "Alarm in pretrain/mae-s0: the loss does not move" in page and "&lt;b&gt;" in page
