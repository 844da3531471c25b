"""The mirror's runs on sqlite: a parent a row, a child a stage, with names, results and tags."""

from __future__ import annotations

import json

import tracking_folders as make
from tracking_reading import runs_of

from harness import tracking
from harness.store import Store
from harness.tracking.server import connect, own_uri


def test_rows_are_parents_and_stages_their_children_once(store: Store) -> None:
    make.write_done(store.root)
    summary = tracking.sync(store)
    assert summary.error == ""
    runs = runs_of(store)
    assert len(runs) == summary.runs == 7
    row = runs["row milan-s0"]
    for name in ("teacher", "pretrain", "linear"):
        child = runs[make.KEYS[name]]
        assert child.data.tags["mlflow.parentRunId"] == row.info.run_id
        assert child.info.status == "FINISHED"
        assert child.info.experiment_id == row.info.experiment_id
    other = runs["row milan-depth-4-s0"]
    assert runs[make.KEYS["linear4"]].data.tags["mlflow.parentRunId"] == other.info.run_id
    teacher = runs[make.KEYS["teacher"]].info.run_id
    assert other.data.tags["run.teacher"] == row.data.tags["run.teacher"] == teacher


def test_stages_are_named_with_their_kind_also_those_of_before(store: Store) -> None:
    make.write_done(store.root)
    tracking.sync(store)
    names = {key: run.info.run_name for key, run in runs_of(store).items()}
    assert names["row milan-s0"] == "milan-s0"
    for name, key in make.KEYS.items():
        assert names[key] == f"{name.rstrip('4')} {make.label(name)}-{key}"
    key, client = make.KEYS["linear"], connect(own_uri(store.root))
    client.update_run(runs_of(store)[key].info.run_id, name=f"milan-s0-{key}")
    assert tracking.sync(store).written == 1
    run = runs_of(store)[key]
    assert (run.info.run_name, run.info.status) == (names[key], "FINISHED")
    assert tracking.sync(store).written == 0


def test_rows_carry_results_cost_and_what_was_varied(store: Store) -> None:
    make.write_done(store.root)
    tracking.sync(store)
    runs = runs_of(store)
    row, other = runs["row milan-s0"], runs["row milan-depth-4-s0"]
    assert row.data.metrics["lin/top1"] == 61.5
    assert row.data.metrics["cost/seconds"] == 20.0  # the shared teacher is not counted
    assert runs[make.KEYS["teacher"]].data.metrics["teacher/zero_shot"] == 61.5
    assert row.data.params["decoder.depth"] == "8"
    assert other.data.params["decoder.depth"] == "4"
    assert row.data.params["objectives.0.loss"] == "Cosine"
    assert row.data.params["masking"] == "SemanticAware"
    assert other.data.tags["changed"] == "decoder.depth=4"
    assert row.info.status == "FINISHED"


def test_tags_name_where_a_stage_ran_and_what_it_needs(store: Store) -> None:
    make.write_done(store.root)
    tracking.sync(store)
    tags = runs_of(store)[make.KEYS["linear"]].data.tags
    expected = {
        "stage": "linear",
        "study": "comparison",
        "scale": "mini",
        "method": "milan",
        "variant": "",
        "seed": "0",
        "parent_key": make.KEYS["pretrain"],
        "cluster": "dev",
        "job_id": "71",
        "attempt": "1",
        "commit": "c0ffee",
        "dirty": "false",
        "end_reason": "done",
    }
    assert {name: tags[name] for name in expected} == expected


def test_a_row_that_left_the_study_is_marked(store: Store) -> None:
    make.write_done(store.root)
    tracking.sync(store)
    plan = make.write_plan(store.root)
    plan["rows"] = plan["rows"][:1]
    (store.root / "studies" / "comparison.json").write_text(json.dumps(plan))
    tracking.sync(store)
    runs = runs_of(store)
    assert runs["row milan-s0"].data.tags["planned"] == "true"
    assert runs["row milan-depth-4-s0"].data.tags["planned"] == "false"


def test_mini_and_paper_are_different_experiments(store: Store) -> None:
    make.write_done(store.root)
    tracking.sync(store)
    plan = make.write_plan(store.root, scale="paper")
    (store.root / "studies" / "comparison-paper.json").write_text(json.dumps(plan))
    make.write_plan(store.root)
    tracking.sync(store)
    names = {each.name for each in connect(own_uri(store.root)).search_experiments()}
    assert {"comparison-mini", "comparison-paper"} <= names
