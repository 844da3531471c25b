"""One real Slurm cluster for the tests in this folder, taken down however they end."""

import atexit
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from system import missing

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT / "slurm" / "dev"))
sys.path.append(str(PROJECT / "tests" / "tracking"))  # its servers

import lab as shared  # noqa: E402
from cluster import Cluster  # noqa: E402
from counting import Counting, Training  # noqa: E402
from host import ClusterError, check_installed  # noqa: E402

from harness.stage import KINDS  # noqa: E402


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "slurm_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes of 8 CPUs and 4 fake GPUs; skipped, or failed in CI, where Slurm is missing."""
    try:
        check_installed()
    except ClusterError as error:
        missing(str(error))
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


@pytest.fixture(scope="session")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot that knows the tests' own stage kinds."""
    return shared.code_with_test_stages(tmp_path_factory.mktemp("code") / "snapshot")


@pytest.fixture
def make_lab(
    slurm_cluster: Cluster, code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., shared.Lab]]:
    """Makes a Lab; its jobs are gone, and all daemons up and nodes ready, when the test ends."""
    for task in (Counting, Training):
        monkeypatch.setitem(KINDS, task.kind, f"counting:{task.__name__}")
    yield lambda wanted, **profile: shared.Lab(slurm_cluster, tmp_path, code, wanted, **profile)
    restore(slurm_cluster)


def restore(cluster: Cluster) -> None:
    """Every daemon up, no job left, every node ready, whatever a test has done."""
    for daemon in ("slurmctld", *(f"slurmd-{node}" for node in cluster.nodes)):
        cluster.start_daemon(daemon)

    def ready() -> bool:
        jobs = cluster.call("squeue", "-h", "-o", "%i").stdout.split()
        if jobs:
            cluster.call("scancel", "--signal=KILL", "--full", *jobs)
            cluster.call("scancel", *jobs)
        for node in cluster.nodes:
            cluster.call("scontrol", "update", f"NodeName={node}", "State=RESUME")
        return not jobs and cluster.idle()

    shared.until(ready, "the cluster ready again")
