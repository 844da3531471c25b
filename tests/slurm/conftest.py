"""One real Slurm cluster for the tests in this folder, taken down however they end."""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "slurm" / "dev"))

from cluster import Cluster  # noqa: E402
from host import ClusterError, check_installed  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes of 8 CPUs and 4 fake GPUs; skipped, or failed in CI, where Slurm is missing."""
    try:
        check_installed()
    except ClusterError as error:
        if os.environ.get("HARNESS_REQUIRE_SYSTEM") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))
    cluster = Cluster(tmp_path_factory.mktemp("slurm") / "cluster", tied=True)
    atexit.register(cluster.down)
    before = _leave_on_sigterm()
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()
        atexit.unregister(cluster.down)
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _leave_on_sigterm() -> "signal._HANDLER | None":
    """A SIGTERM ends the tests like an error does, so that the cluster is taken down."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
