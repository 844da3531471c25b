"""Curves on sqlite: every point once, also of steps that are done again."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import tracking_folders as make
from tracking_reading import curve, of_file, runs_of
from tracking_servers import counts

from harness import provenance, tracking
from harness.store import Store


def test_two_mirrors_of_one_store_make_each_run_once(store: Store) -> None:
    """As two `harness run` do that both look, and then both see a stage begin."""
    make.write_plan(store.root)
    both = [tracking.Mirror(store, "comparison") for _ in range(2)]
    for name in ("teacher", "pretrain"):
        folder = make.write_stage(store.root, name)
        for mirror in both:
            make.write_curve(folder, 1 if mirror is both[0] else 4, 3 if mirror is both[0] else 6)
            assert mirror.once().error == ""
        assert curve(store, make.KEYS[name]) == of_file(folder)
    assert tracking.sync(store).written == 0


def test_steps_done_again_after_a_kill_are_there_once(store: Store) -> None:
    make.write_plan(store.root)
    folder = make.write_stage(store.root, "pretrain")
    make.write_owner(folder, os.getpid(), provenance.host())
    make.write_curve(folder, 1, 20)
    mirror = tracking.Mirror(store, "comparison")
    mirror.once()
    first = runs_of(store)[make.KEYS["pretrain"]].info.run_id
    make.rewind(folder, 12)
    mirror.once()
    make.write_curve(folder, 13, 16, late=500)
    mirror.once()
    make.write_curve(folder, 17, 30, late=500)
    mirror.once()
    tracking.Mirror(store, "comparison").once()
    assert curve(store, make.KEYS["pretrain"]) == of_file(folder)
    assert runs_of(store)[make.KEYS["pretrain"]].info.run_id == first


def test_a_stage_begun_afresh_with_other_values_is_no_mixture(store: Store) -> None:
    folder = make.write_pretraining(store.root, 20)
    tracking.sync(store)
    (folder / "metrics.jsonl").unlink()
    make.write_curve(folder, 1, 15, late=900, scale=3.0)
    assert tracking.sync(store).error == ""
    assert curve(store, make.KEYS["pretrain"]) == of_file(folder)
    before = counts(store.root / "mlflow.db")
    assert tracking.sync(store).written == 0
    assert counts(store.root / "mlflow.db") == before


def test_metrics_logged_at_one_step_in_two_lines_all_arrive(store: Store) -> None:
    folder = make.write_pretraining(store.root, 5)
    mirror = tracking.Mirror(store, "comparison")
    mirror.once()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 5, "time": make.START + 6, "acc@1": 7.0}) + "\n")
        file.write('{"step": 6, "time": 17')  # a line that is just being written
    assert mirror.once().error == ""
    assert curve(store, make.KEYS["pretrain"], "acc_1") == [(5, 7.0)]


def test_an_evaluation_under_the_training_s_names_is_no_redone_step(store: Store) -> None:
    """Both values of the last step arrive, each once: live, later, and done again after a kill."""
    folder = make.write_pretraining(store.root, 5)
    mirror = tracking.Mirror(store, "comparison")
    mirror.once()
    key = make.KEYS["pretrain"]
    first = runs_of(store)[key].info.run_id
    evaluate(folder, 60.0)
    assert tracking.sync(store).written > 0  # as over a store of which only the first arrived
    assert curve(store, key) == sorted(of_file(folder)) and len(of_file(folder)) == 6
    assert tracking.sync(store).written == 0
    evaluate(folder, 70.0)
    mirror.once()
    assert curve(store, key) == sorted(of_file(folder)) and len(of_file(folder)) == 7
    before = curve(store, key)

    make.rewind(folder, 3)
    make.write_curve(folder, 4, 5, late=500)
    evaluate(folder, 60.0, late=500)
    evaluate(folder, 70.0, late=500)
    assert mirror.once().error == "" and tracking.sync(store).written == 0
    assert curve(store, key) == before and runs_of(store)[key].info.run_id == first


def evaluate(folder: Path, loss: float, late: float = 0.0) -> None:
    """A second line of step 5."""
    with (folder / "metrics.jsonl").open("a") as file:
        line = {"step": 5, "time": make.START + loss + late, "loss": loss}
        file.write(json.dumps(line) + "\n")


def test_many_points_are_fast(store: Store) -> None:
    plan = make.write_plan(store.root)
    keys = [f"bbbbbbbb{number:02d}" for number in range(8)]
    for key in keys:
        folder = store.root / "knn" / f"milan-s0-{key}"
        folder.mkdir(parents=True)
        (folder / "stage.json").write_text(json.dumps({"key": key, "kind": "knn", "task": {}}))
        make.write_curve(folder, 1, 1667)  # 3 metrics a line
        plan["stages"][key] = {"kind": "knn", "label": "milan-s0", "needs": {}}
    plan["rows"] = [{**plan["rows"][0], "stages": {str(n): key for n, key in enumerate(keys)}}]
    (store.root / "studies" / "comparison.json").write_text(json.dumps(plan))
    began = time.process_time()
    assert tracking.sync(store).error == ""
    # Processor time, 3.7 s when this was written: the clock on the wall measures the neighbours.
    assert time.process_time() - began < 15
    assert len(curve(store, keys[-1])) == 1667


def test_following_sees_what_happens_meanwhile(store: Store) -> None:
    make.write_plan(store.root)
    folder = make.write_stage(store.root, "pretrain")
    make.write_owner(folder, os.getpid(), provenance.host())
    with tracking.following(store, "comparison", every=0.2):
        for step in range(1, 6):
            make.write_curve(folder, step, step)
            time.sleep(0.1)
        make.write_outcome(folder)
    assert curve(store, make.KEYS["pretrain"]) == of_file(folder)
    assert runs_of(store)[make.KEYS["pretrain"]].info.status == "FINISHED"
