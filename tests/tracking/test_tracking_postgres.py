"""The mirror on an `mlflow server` whose database is a real PostgreSQL on loopback."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tracking_folders as make
from system import missing
from tracking_servers import Server, free_port

from harness import tracking
from harness.store import Store
from harness.tracking.mirror import store_id
from harness.tracking.server import connect


def binaries() -> Path | None:
    """Where Debian keeps initdb and pg_ctl, which are not on PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


def lacking() -> str:
    """Why this cannot run here, or ""."""
    if binaries() is None:
        return "PostgreSQL is not installed (Debian's package postgresql)"
    if importlib.util.find_spec("psycopg2") is None:
        return "psycopg2 is not installed (pip install psycopg2-binary)"
    return ""


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """A database cluster of its own, in a folder that PostgreSQL's user may write to."""
    reason = lacking()
    if reason:
        missing(reason)
    # PostgreSQL refuses to run as root, and so does it to use a folder that it does not own.
    who = {"user": "postgres"} if os.getuid() == 0 else {}
    place, port = Path(tempfile.mkdtemp(prefix="harness-postgres-")), free_port()
    if who:
        shutil.chown(place, "postgres")
    folder = binaries()
    assert folder is not None

    def call(*words: str) -> None:
        done = subprocess.run(words, cwd=place, capture_output=True, text=True, timeout=300, **who)
        log = place / "log"
        said = log.read_text() if log.exists() else ""
        assert done.returncode == 0, f"{words[0]}: {done.stdout}{done.stderr}{said}"

    data = str(place / "data")
    call(str(folder / "initdb"), "-D", data, "-A", "trust", "-U", "harness", "--no-sync")
    options = f"-c listen_addresses=127.0.0.1 -c fsync=off -p {port} -k {place}"
    control = (str(folder / "pg_ctl"), "-D", data, "-w", "-t", "240")
    # Its output goes to a file: a pipe would stay open in the server and `call` wait for ever.
    call(*control, "-l", str(place / "log"), "-o", options, "start")
    try:
        yield f"postgresql+psycopg2://harness@127.0.0.1:{port}/postgres"
    finally:
        call(*control, "-m", "immediate", "stop")
        shutil.rmtree(place)


@pytest.fixture(scope="module")
def postgres(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("server"))
    running.backend = database
    running.start()
    yield running
    running.stop()


def test_sixteen_stages_forward_at_once_and_sync_finds_nothing_to_add(
    tmp_path: Path, postgres: Server
) -> None:
    store = Store(tmp_path / "runs")
    keys = write_sixteen(store)
    mirrors = [tracking.Mirror(store, "comparison", postgres.uri) for _ in keys]
    with ThreadPoolExecutor(16) as pool:
        found = list(
            pool.map(lambda each: each[0].once([each[1]]), zip(mirrors, keys, strict=True))
        )
    assert [each.error for each in found] == [""] * 16
    assert tracking.sync(store, postgres.uri).error == ""
    assert tracking.sync(store, postgres.uri).written == 0
    client = connect(postgres.uri)
    experiments = [each.experiment_id for each in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.store = '{store_id(store.root)}'")
    assert len(runs) == 17
    for run in runs:
        if run.data.tags["level"] == "stage":
            history = client.get_metric_history(run.info.run_id, "loss")
            assert [each.step for each in history] == list(range(1, 21))
            assert history[0].value == 3.0
            assert run.info.status == "FINISHED"


def test_numbers_that_are_none_come_back(tmp_path: Path, postgres: Server) -> None:
    store = Store(tmp_path / "runs")
    make.write_plan(store.root)
    folder = make.write_stage(store.root, "pretrain")
    time = make.START
    lines = [f'{{"step": 1, "time": {time}, "loss": NaN}}', f'{{"step": 2, "time": {time}}}']
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert tracking.sync(store, postgres.uri).error == ""
    assert tracking.sync(store, postgres.uri).written == 0


def write_sixteen(store: Store) -> list[str]:
    """A row with sixteen finished stages."""
    plan = make.write_plan(store.root)
    keys = [f"cccccccc{number:02d}" for number in range(16)]
    for key in keys:
        folder = store.root / "knn" / f"milan-s0-{key}"
        folder.mkdir(parents=True)
        make.write_json(folder / "stage.json", {"key": key, "kind": "knn", "task": {}})
        make.write_curve(folder, 1, 20)
        make.write_outcome(folder)
        plan["stages"][key] = {"kind": "knn", "label": "milan-s0", "needs": {}}
    plan["rows"] = [{**plan["rows"][0], "stages": {str(n): key for n, key in enumerate(keys)}}]
    make.write_json(store.root / "studies" / "comparison.json", plan)
    return keys
