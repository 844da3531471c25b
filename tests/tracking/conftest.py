"""A real MLflow server on loopback, and databases that are made once and copied."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tracking_servers import Server

from harness.store import Store
from harness.tracking.server import connect, own_uri


@pytest.fixture(scope="session", autouse=True)
def no_server_of_the_user() -> Iterator[None]:
    """What the person who runs the tests has set must not receive their runs."""
    saved = os.environ.pop("MLFLOW_TRACKING_URI", None)
    yield
    if saved is not None:
        os.environ["MLFLOW_TRACKING_URI"] = saved


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initialised sqlite file: making its tables takes seconds."""
    root = tmp_path_factory.mktemp("database")
    connect(own_uri(root)).search_experiments(max_results=1)
    return root / "mlflow.db"


@pytest.fixture
def store(tmp_path: Path, fresh_database: Path) -> Store:
    root = tmp_path / "runs"
    root.mkdir()
    shutil.copy(fresh_database, root / "mlflow.db")
    return Store(root)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, fresh_database: Path) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(fresh_database, folder / "mlflow.db")
    running = Server(folder)
    running.start()
    yield running
    running.stop()
