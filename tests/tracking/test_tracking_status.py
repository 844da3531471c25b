"""Statuses on sqlite: what ended never looks alive, and a failure never finished."""

from __future__ import annotations

import os

import tracking_folders as make
from tracking_reading import runs_of

from harness import provenance, tracking
from harness.store import Store


def test_statuses_are_true(store: Store) -> None:
    make.write_plan(store.root)
    folder = make.write_stage(store.root, "pretrain")
    make.write_curve(folder, 1, 3)
    make.write_owner(folder, os.getpid(), provenance.host())
    waiting = make.write_stage(store.root, "linear")
    tracking.sync(store)
    runs = runs_of(store)
    assert runs[make.KEYS["pretrain"]].info.status == "RUNNING"
    assert runs[make.KEYS["linear"]].info.status == "SCHEDULED"
    assert runs["row milan-s0"].info.status == "RUNNING"

    make.write_owner(folder, make.dead_pid(), provenance.host())  # SIGKILL: nobody said a word
    tracking.sync(store)
    run = runs_of(store)[make.KEYS["pretrain"]]
    assert (run.info.status, run.data.tags["end_reason"]) == ("KILLED", "killed")
    assert run.info.end_time == round(1000 * (make.START + 3))

    make.write_attempt(folder, "2")
    make.write_owner(folder, os.getpid(), provenance.host(), attempt="2")
    tracking.sync(store)
    run = runs_of(store)[make.KEYS["pretrain"]]
    assert (run.info.status, run.data.tags["attempt"]) == ("RUNNING", "2")

    error = {"reason": "nan", "message": "loss is NaN at step 4"}
    make.write_outcome(folder, "failed", error=error)
    make.write_outcome(waiting, "failed", error={"reason": "needs", "message": "clip"})
    tracking.sync(store)
    runs = runs_of(store)
    assert runs[make.KEYS["pretrain"]].info.status == "FAILED"
    assert runs[make.KEYS["pretrain"]].data.tags["end_reason"] == "nan"
    assert runs["row milan-s0"].info.status == "FAILED"
    assert "pretrain/loss" not in runs[make.KEYS["pretrain"]].data.metrics


def test_a_stopped_stage_is_killed_and_a_retried_one_finishes(store: Store) -> None:
    make.write_plan(store.root)
    folder = make.write_stage(store.root, "pretrain", {"stopped": "preempted"})
    make.write_curve(folder, 1, 3)
    make.write_owner(folder, make.dead_pid(), provenance.host())
    tracking.sync(store)
    run = runs_of(store)[make.KEYS["pretrain"]]
    assert (run.info.status, run.data.tags["end_reason"]) == ("KILLED", "preempted")
    make.write_outcome(folder)
    tracking.sync(store)
    run = runs_of(store)[make.KEYS["pretrain"]]
    assert (run.info.status, run.data.tags["end_reason"]) == ("FINISHED", "done")
