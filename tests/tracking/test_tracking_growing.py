"""Curves that grow while they are mirrored: sixteen at once, and beside a server that fails."""

from __future__ import annotations

import json
import logging
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tracking_folders as make
from tracking_servers import Server, failing_server

from harness import tracking
from harness.store import Store
from harness.tracking.server import connect, own_uri

LINES = 30


def write_stages(store: Store, count: int) -> list[Path]:
    """A row of stages that have not begun."""
    plan, folders = make.write_plan(store.root), []
    keys = [f"eeeeeeee{number:02d}" for number in range(count)]
    for key in keys:
        folders.append(store.root / "knn" / f"milan-s0-{key}")
        folders[-1].mkdir(parents=True)
        make.write_json(folders[-1] / "stage.json", {"key": key, "kind": "knn", "task": {}})
        plan["stages"][key] = {"kind": "knn", "label": "milan-s0", "needs": {}}
    plan["rows"] = [{**plan["rows"][0], "stages": {str(n): key for n, key in enumerate(keys)}}]
    make.write_json(store.root / "studies" / "comparison.json", plan)
    return folders


def grow(folder: Path) -> None:
    for step in range(1, LINES + 1):
        make.write_curve(folder, step, step)
        time.sleep(0.05)
    make.write_outcome(folder)


def assert_whole(uri: str, folders: list[Path]) -> None:
    """Every stage is finished there, with each point of its file once and no other."""
    client = connect(uri)
    experiments = [each.experiment_id for each in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.level = 'stage'", max_results=1000)
    by_key = {run.data.tags["key"]: run for run in runs}
    for folder in folders:
        run = by_key[folder.name.rpartition("-")[2]]
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert len(lines) == LINES
        for name in lines[0].keys() - {"step", "time"}:
            found = client.get_metric_history(run.info.run_id, name)
            points = sorted((each.step, each.timestamp, each.value) for each in found)
            wanted = [(each["step"], round(1000 * each["time"]), each[name]) for each in lines]
            assert points == wanted, (folder.name, name)
        assert run.info.status == "FINISHED"


def test_sixteen_stages_grow_and_sqlite_holds_each_point_once(store: Store) -> None:
    folders = write_stages(store, 16)
    with tracking.following(store, "comparison", every=0.05), ThreadPoolExecutor(16) as pool:
        list(pool.map(grow, folders))
    assert_whole(own_uri(store.root), folders)
    assert tracking.sync(store).written == 0


def test_a_server_that_failed_all_along_holds_everything_after_sync(
    tmp_path: Path,
    fresh_database: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    store, place = Store(tmp_path / "runs"), tmp_path / "server"
    folders = write_stages(store, 2)
    place.mkdir()
    shutil.copy(fresh_database, place / "mlflow.db")
    server = Server(place)
    with (
        caplog.at_level(logging.WARNING, logger="harness"),
        failing_server(server.port),
        tracking.following(store, "comparison", server.uri, every=0.1),
    ):
        for folder in folders:
            grow(folder)
    assert any("behind" in each.message for each in caplog.records)
    server.start()
    try:
        assert tracking.sync(store, server.uri).error == ""
        assert_whole(server.uri, folders)
        assert tracking.sync(store, server.uri).written == 0
    finally:
        server.stop()
