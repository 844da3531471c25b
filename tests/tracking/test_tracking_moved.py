"""Artifacts of a store that is moved or copied, or whose artifacts are deleted."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tracking_folders as make
from tracking_servers import Server

from harness import tracking
from harness.store import Store
from harness.tracking.mirror import store_id
from harness.tracking.server import connect, default_uri


def held(store: Store, uri: str = "") -> dict[str, list[str]]:
    """The artifacts of every run of the store, by its key."""
    client = connect(uri or default_uri(store.root))
    experiments = [each.experiment_id for each in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.store = '{store_id(store.root)}'")
    return {run.data.tags["key"]: files(client, run.info.run_id, None) for run in found}


def files(client: Any, run: str, folder: str | None) -> list[str]:
    found = []
    for each in client.list_artifacts(run, folder):
        found += files(client, run, each.path) if each.is_dir else [each.path]
    return sorted(found)


def on_disk(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def mirrored(store: Store) -> Store:
    """A finished study with pictures, made level."""
    make.write_done(store.root)
    pictures = make.folder_of(store.root, "pretrain") / "pictures"
    pictures.mkdir()
    (pictures / "mask.png").write_bytes(b"png")
    assert tracking.sync(store).error == ""
    assert "pictures/mask.png" in held(store)[make.KEYS["pretrain"]]
    return store


def test_a_moved_store_keeps_its_artifacts(mirrored: Store, tmp_path: Path) -> None:
    before = held(mirrored)
    moved = Store(mirrored.root.rename(tmp_path / "else where"))
    assert held(moved) != before
    assert tracking.sync(moved).written > 0
    assert held(moved) == before
    assert tracking.sync(moved).written == 0
    assert not mirrored.root.exists()


def test_a_copy_writes_into_its_own_folder(mirrored: Store, tmp_path: Path) -> None:
    copy = Store(Path(shutil.copytree(mirrored.root, tmp_path / "copy")))
    before, original = held(mirrored), on_disk(mirrored.root)
    folder = make.folder_of(copy.root, "linear")
    make.write_outcome(folder, metrics={"top1": 12.5}, finished=make.START + 200)
    (folder / "metrics.jsonl").write_text("")
    # MLflow keeps a run's place as long as a process lives, so this is another one.
    command = [sys.executable, "-m", "harness.cli", "sync", "--store", str(copy.root)]
    subprocess.run(command, check=True)
    assert held(copy) == before and on_disk(mirrored.root) == original
    (page,) = copy.root.glob("mlartifacts/*/*/artifacts/report.html")
    assert "12.5" in page.read_text()
    assert tracking.sync(copy).written == 0


def test_deleted_artifacts_are_written_again(mirrored: Store) -> None:
    before = held(mirrored)
    (picture,) = mirrored.root.glob("mlartifacts/*/*/artifacts/pictures/mask.png")
    (page,) = mirrored.root.glob("mlartifacts/*/*/artifacts/report.html")
    for lost in (picture, page, mirrored.root / "mlartifacts"):
        shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
        assert tracking.sync(mirrored).written > 0
        assert held(mirrored) == before
        assert tracking.sync(mirrored).written == 0


def test_artifacts_that_a_server_lost_are_written_again(store: Store, server: Server) -> None:
    make.write_done(store.root)
    assert tracking.sync(store, server.uri).error == ""
    before = held(store, server.uri)
    key = make.KEYS["linear"]
    assert before[key] == ["environment.json", "metrics.jsonl", "task.json"]
    client = connect(server.uri)
    experiments = [each.experiment_id for each in client.search_experiments()]
    mine = f"tags.store = '{store_id(store.root)}' and tags.key = '{key}'"
    (run,) = client.search_runs(experiments, mine)
    (folder,) = (server.folder / "artifacts").glob(f"*/{run.info.run_id}")
    shutil.rmtree(folder)
    assert held(store, server.uri)[key] == []
    assert tracking.sync(store, server.uri).written > 0
    assert held(store, server.uri) == before
    assert tracking.sync(store, server.uri).written == 0
