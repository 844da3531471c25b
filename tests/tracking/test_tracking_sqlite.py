"""The mirror on the store's own sqlite file."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tracking_folders as make
from tracking_servers import counts

from harness import provenance, tracking
from harness.cli import main
from harness.store import Store
from harness.tracking.runs import OURS
from harness.tracking.server import connect, own_uri
from methods.errors import InputError


def runs_of(store: Store) -> dict[str, Any]:
    """Every run by its key; rows by their label."""
    client = connect(own_uri(store.root))
    experiments = [each.experiment_id for each in client.search_experiments()]
    found = {}
    for run in client.search_runs(experiments, max_results=1000):
        tags = run.data.tags
        name = tags["key"] if tags["level"] == "stage" else f"row {tags['label']}"
        assert name not in found, f"{name} is there twice"
        found[name] = run
    return found


def curve(store: Store, key: str, name: str = "loss") -> list[tuple[int, float]]:
    run = runs_of(store)[key]
    history = connect(own_uri(store.root)).get_metric_history(run.info.run_id, name)
    return sorted((each.step, each.value) for each in history)


def of_file(folder: Path, name: str = "loss") -> list[tuple[int, float]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line[name]) for line in lines]


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


def test_task_environment_data_set_and_weights_are_recorded(store: Store) -> None:
    make.write_done(store.root)
    folder = make.folder_of(store.root, "pretrain")
    pictures, digest = folder / "pictures", "0f" * 32
    pictures.mkdir()
    (pictures / "mask.png").write_bytes(b"png")
    (folder / "state").mkdir()
    (folder / f"state/step-0000000010-{digest}.pt").write_bytes(b"a checkpoint")
    tracking.sync(store)
    client, run = connect(own_uri(store.root)), runs_of(store)[make.KEYS["pretrain"]]
    names = {each.path for each in client.list_artifacts(run.info.run_id)}
    assert names == {"task.json", "environment.json", "metrics.jsonl", "pictures"}
    assert (store.root / "mlartifacts").is_dir()
    assert run.inputs.dataset_inputs[0].dataset.name == "Patchwork"
    assert run.data.tags["encoder.path"] == f"pretrain/milan-s0-{make.KEYS['pretrain']}/" + (
        "encoder.safetensors"
    )
    assert len(run.data.tags["encoder.sha256"]) == 64
    assert run.data.tags["checkpoint.path"].endswith(f"/state/step-0000000010-{digest}.pt")
    assert run.data.tags["checkpoint.sha256"] == digest


def test_an_evaluation_has_its_protocol_card(store: Store) -> None:
    from evals.linear import LinearProbe
    from methods.parts.encoder import ViT
    from methods.values import to_plain

    make.write_done(store.root)
    path = make.folder_of(store.root, "linear") / "stage.json"
    stage = json.loads(path.read_text())
    path.write_text(json.dumps({**stage, "task": to_plain(LinearProbe(ViT()))}))
    tracking.sync(store)
    run = runs_of(store)[make.KEYS["linear"]]
    place = connect(own_uri(store.root)).download_artifacts(
        run.info.run_id, "protocol.json", str(store.root)
    )
    assert json.loads(Path(place).read_text()) == LinearProbe(ViT()).protocol()


def test_a_second_sync_changes_nothing(store: Store) -> None:
    make.write_done(store.root)
    tracking.sync(store)
    before = counts(store.root / "mlflow.db")
    assert before["metrics"] > 150
    again = tracking.sync(store)
    assert (again.error, again.written) == ("", 0)
    assert counts(store.root / "mlflow.db") == before


def test_a_lost_database_is_rebuilt_from_the_store(store: Store) -> None:
    """Also by a mirror that was at work when the file was deleted, in its next pass."""
    make.write_plan(store.root)
    folder = make.write_stage(store.root, "pretrain")
    make.write_curve(folder, 1, 5)
    mirror = tracking.Mirror(store, "comparison")
    first = mirror.once()
    (store.root / "mlflow.db").unlink()
    make.write_curve(folder, 6, 9)
    make.write_outcome(folder)
    again = mirror.once()
    assert again.error == "" and again.runs == first.runs and again.written > first.written
    assert counts(store.root / "mlflow.db")["runs"] == first.runs
    assert curve(store, make.KEYS["pretrain"]) == of_file(folder)
    assert tracking.sync(store).written == 0


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
    make.write_plan(store.root)
    folder = make.write_stage(store.root, "pretrain")
    make.write_curve(folder, 1, 20)
    tracking.sync(store)
    (folder / "metrics.jsonl").unlink()
    make.write_curve(folder, 1, 15, late=900, scale=3.0)
    assert tracking.sync(store).error == ""
    assert curve(store, make.KEYS["pretrain"]) == of_file(folder)
    before = counts(store.root / "mlflow.db")
    assert tracking.sync(store).written == 0
    assert counts(store.root / "mlflow.db") == before


def test_metrics_logged_at_one_step_in_two_lines_all_arrive(store: Store) -> None:
    make.write_plan(store.root)
    folder = make.write_stage(store.root, "pretrain")
    make.write_curve(folder, 1, 5)
    mirror = tracking.Mirror(store, "comparison")
    mirror.once()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 5, "time": make.START + 6, "acc@1": 7.0}) + "\n")
        file.write('{"step": 6, "time": 17')  # a line that is just being written
    assert mirror.once().error == ""
    assert curve(store, make.KEYS["pretrain"], "acc_1") == [(5, 7.0)]


def test_an_evaluation_under_the_training_s_names_is_no_redone_step(store: Store) -> None:
    """Both values of the last step arrive, each once: live, later, and done again after a kill."""
    make.write_plan(store.root)
    folder = make.write_stage(store.root, "pretrain")
    make.write_curve(folder, 1, 5)
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


def test_mini_and_paper_are_different_experiments(store: Store) -> None:
    make.write_done(store.root)
    tracking.sync(store)
    plan = make.write_plan(store.root, scale="paper")
    (store.root / "studies" / "comparison-paper.json").write_text(json.dumps(plan))
    make.write_plan(store.root)
    tracking.sync(store)
    names = {each.name for each in connect(own_uri(store.root)).search_experiments()}
    assert {"comparison-mini", "comparison-paper"} <= names


def test_sync_means_the_studies_that_report_would_show(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name, a file's name, a scale: each is looked up, and what is not there is said."""
    make.write_done(store.root)
    make.write_plan(store.root, scale="tiny")
    studies = store.root / "studies"
    (studies / "comparison.json").rename(studies / "comparison-tiny.json")
    make.write_plan(store.root)

    def synced(*words: str) -> tuple[int, str, set[str]]:
        with pytest.raises(SystemExit) as left:
            main(["sync", "--store", str(store.root), *words])
        told = capsys.readouterr()
        found = connect(own_uri(store.root)).search_experiments(filter_string=OURS)
        return int(left.value.code or 0), told.err, {each.name for each in found}

    code, told, names = synced("--study", "comparison", "--scale", "paper")
    assert (code, names) == (2, set()) and "mini, tiny" in told
    code, told, names = synced("--scale", "paper")
    assert (code, names) == (2, set()) and "no study of scale 'paper'" in told
    assert synced("--study", "comparison.toml", "--scale", "tiny")[::2] == (0, {"comparison-tiny"})
    assert synced("--scale", "mini")[::2] == (0, {"comparison-tiny", "comparison-mini"})


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


def test_secrets_reach_no_tag_parameter_or_file(store: Store, tmp_path: Path) -> None:
    make.write_plan(store.root)
    job = {"environment": {"WANDB_API_KEY": "s3cr3t"}, "setup": "export TOKEN=s3cr3t"}
    folder = make.write_stage(store.root, "pretrain", job)
    message = "https://me:s3cr3t@host/x refused; HF_TOKEN=s3cr3t, cls_token: missing"
    make.write_outcome(folder, "failed", error={"reason": "weights", "message": message})
    tracking.sync(store)
    tags = runs_of(store)[make.KEYS["pretrain"]].data.tags
    assert "cls_token: missing" in tags["error"]
    with sqlite3.connect(store.root / "mlflow.db") as database:
        assert "s3cr3t" not in "\n".join(database.iterdump())
    for path in (store.root / "mlartifacts").rglob("*"):
        assert path.is_dir() or b"s3cr3t" not in path.read_bytes()


def test_a_damaged_outcome_stops_no_other_stage(store: Store) -> None:
    make.write_done(store.root)
    (make.folder_of(store.root, "pretrain4") / "outcome.json").write_text("{")
    summary = tracking.sync(store)
    assert "outcome.json" in summary.error
    assert runs_of(store)[make.KEYS["linear"]].info.status == "FINISHED"


def test_writers_take_turns(store: Store) -> None:
    """Sixteen at once in two processes, on a file that does not exist yet."""
    make.write_done(store.root)
    (store.root / "mlflow.db").unlink()
    code = (
        "import sys; from pathlib import Path; from harness import tracking\n"
        "from harness.store import Store\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "s = Store(Path(sys.argv[1]))\n"
        "with ThreadPoolExecutor(8) as pool:\n"
        "    found = list(pool.map(lambda _: tracking.sync(s), range(8)))\n"
        "sys.exit(any(each.error for each in found))\n"
    )
    command = [sys.executable, "-c", code, str(store.root)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(300) for process in processes] == [0, 0]
    assert len(runs_of(store)) == 7
    assert tracking.sync(store).written == 0


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


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/x", "postgresql://u:p@h/d", "sqlite:///"])
def test_other_addresses_are_refused(store: Store, uri: str) -> None:
    make.write_plan(store.root)
    with pytest.raises(InputError, match="expected http") as found:
        tracking.sync(store, uri)
    assert ":p@" not in str(found.value)


def test_a_store_without_studies_is_told_so(store: Store) -> None:
    with pytest.raises(InputError, match="harness run"):
        tracking.sync(store)
