"""The mirror and the report's source on a real `mlflow server`, also one that is away or ill."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tracking_folders as make
from tracking_servers import Server, failing_server, free_port

from harness import provenance, tracking
from harness.report.records import make_records
from harness.report.source import StoreSource
from harness.store import Store
from harness.tracking.mirror import store_id
from harness.tracking.server import connect
from methods.errors import InputError


@pytest.fixture
def empty(tmp_path: Path) -> Store:
    """A store without a database of its own."""
    (tmp_path / "runs").mkdir()
    return Store(tmp_path / "runs")


def runs_of(store: Store, uri: str) -> dict[str, Any]:
    client = connect(uri)
    experiments = [each.experiment_id for each in client.search_experiments()]
    mine = f"tags.store = '{store_id(store.root)}'"
    found = client.search_runs(experiments, mine, max_results=1000)
    runs = {run.data.tags["key"]: run for run in found}
    assert len(runs) == len(found)
    return runs


def history(run: Any, uri: str, name: str = "loss") -> list[tuple[int, int, float]]:
    found = connect(uri).get_metric_history(run.info.run_id, name)
    return sorted((each.step, each.timestamp, each.value) for each in found)


def of_file(folder: Path) -> list[tuple[int, int, float]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], round(1000 * line["time"]), line["loss"]) for line in lines]


def test_a_server_is_made_level_once(empty: Store, server: Server) -> None:
    make.write_done(empty.root)
    assert tracking.sync(empty, server.uri).error == ""
    runs = runs_of(empty, server.uri)
    assert len(runs) == 7
    folder = make.folder_of(empty.root, "pretrain")
    assert history(runs[make.KEYS["pretrain"]], server.uri) == of_file(folder)
    again = tracking.sync(empty, server.uri)
    assert (again.error, again.written) == ("", 0)
    assert not (empty.root / "mlflow.db").exists()


def test_tables_are_the_same_from_mlflow_alone(empty: Store, server: Server) -> None:
    make.write_done(empty.root)
    make.write_outcome(
        make.folder_of(empty.root, "linear4"),
        "failed",
        error={"reason": "nan", "message": "loss is NaN at step 4"},
    )
    tracking.sync(empty, server.uri)
    store, mlflow = StoreSource(empty.root), tracking.MlflowSource(server.uri)
    plan = mlflow.plan("comparison", "mini")
    assert plan == store.plan("comparison")
    assert make_records(mlflow, plan) == make_records(store, plan)
    key = make.KEYS["pretrain"]
    assert mlflow.stage(key) == store.stage(key)
    assert mlflow.history(key) == store.history(key)
    assert mlflow.outcome("0000000000") == {"state": "missing"}


def test_pictures_come_back(empty: Store, server: Server) -> None:
    make.write_done(empty.root)
    folder = make.folder_of(empty.root, "pretrain") / "pictures"
    folder.mkdir()
    (folder / "mask.png").write_bytes(b"png")
    assert tracking.sync(empty, server.uri).error == ""
    mlflow = tracking.MlflowSource(server.uri)
    mlflow.plan("comparison")
    assert mlflow.pictures(make.KEYS["pretrain"]) == {"mask": b"png"}


def test_an_unknown_study_is_named(server: Server) -> None:
    with pytest.raises(InputError, match="no study 'nothing'"):
        tracking.MlflowSource(server.uri).plan("nothing")


def test_two_stores_do_not_touch_each_others_runs(tmp_path: Path, server: Server) -> None:
    stores = [Store(tmp_path / name) for name in ("one", "two")]
    for store in stores:
        make.write_done(store.root)
        tracking.sync(store, server.uri)
    first, second = (runs_of(store, server.uri) for store in stores)
    ids = [{run.info.run_id for run in runs.values()} for runs in (first, second)]
    assert len(ids[0]) == len(ids[1]) == 7 and not ids[0] & ids[1]


def test_a_job_forwards_its_own_stage(
    empty: Store, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    make.write_plan(empty.root)
    folder = make.write_stage(empty.root, "pretrain")
    make.write_stage(empty.root, "linear")
    make.write_owner(folder, os.getpid(), provenance.host())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    with tracking.forwarding(folder, every=0.2):
        make.write_curve(folder, 1, 4)
        make.write_outcome(folder)
    runs = runs_of(empty, server.uri)
    assert set(runs) > {make.KEYS["pretrain"]} and make.KEYS["linear"] not in runs
    assert history(runs[make.KEYS["pretrain"]], server.uri) == of_file(folder)
    assert runs[make.KEYS["pretrain"]].info.status == "FINISHED"


def test_a_job_without_a_server_writes_nothing(empty: Store) -> None:
    make.write_plan(empty.root)
    folder = make.write_stage(empty.root, "pretrain")
    with tracking.forwarding(folder):
        make.write_curve(folder, 1, 4)
    assert not (empty.root / "mlflow.db").exists()


def test_a_server_that_was_down_is_made_level_later(
    empty: Store, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    make.write_plan(empty.root)
    folder = make.write_stage(empty.root, "pretrain")
    make.write_curve(folder, 1, 5)
    mirror = tracking.Mirror(empty, "comparison", server.uri)
    assert mirror.once().error == ""
    server.stop()
    try:
        make.write_curve(folder, 6, 9)
        with caplog.at_level(logging.WARNING, logger="harness"):
            assert mirror.once().error and mirror.once().error
        assert len([each for each in caplog.records if "behind" in each.message]) == 1
        make.write_outcome(folder)
    finally:
        server.start()
    assert mirror.once().error == ""
    run = runs_of(empty, server.uri)[make.KEYS["pretrain"]]
    assert history(run, server.uri) == of_file(folder)
    assert run.info.status == "FINISHED"
    assert tracking.sync(empty, server.uri).written == 0


@pytest.mark.long
def test_a_server_that_lost_its_database_is_made_level_again(
    empty: Store, server: Server, fresh_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleted under the running server, which is then started again on an empty one."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    make.write_plan(empty.root)
    folder = make.write_stage(empty.root, "pretrain")
    make.write_curve(folder, 1, 5)
    mirror = tracking.Mirror(empty, "comparison", server.uri)
    first = mirror.once()
    (server.folder / "mlflow.db").unlink()
    make.write_curve(folder, 6, 9)
    assert "behind" in str(mirror.once())
    server.stop()
    shutil.copy(fresh_database, server.folder / "mlflow.db")
    server.start()
    make.write_outcome(folder)
    again = mirror.once()
    assert again.error == "" and again.runs == first.runs and again.written > first.written
    run = runs_of(empty, server.uri)[make.KEYS["pretrain"]]
    assert history(run, server.uri) == of_file(folder)
    assert run.info.status == "FINISHED"
    assert tracking.sync(empty, server.uri).written == 0


@pytest.fixture
def ill() -> Iterator[str]:
    with failing_server() as address:
        yield address


def test_a_server_that_answers_500_stops_nothing(
    empty: Store, ill: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    make.write_done(empty.root)
    done = False
    with tracking.following(empty, "comparison", ill, every=0.1):
        done = True
    assert done
    summary = tracking.sync(empty, ill)
    assert "500" in summary.error and "harness sync" in str(summary)


def test_an_error_names_no_password(empty: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    make.write_done(empty.root)
    uri = f"http://me:s3cr3t@127.0.0.1:{free_port()}"
    summary = tracking.sync(empty, uri)
    assert summary.error and "s3cr3t" not in str(summary)
    with pytest.raises(InputError) as found:
        tracking.MlflowSource(uri).plan("comparison")
    assert "s3cr3t" not in str(found.value)
