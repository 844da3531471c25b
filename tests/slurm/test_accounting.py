"""A cluster with accounting: its limits and accounts refuse in Slurm's words, and cost nothing.

python -m pytest -m long tests/slurm/test_accounting.py     (half a minute; needs MariaDB)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from accounting import ACCOUNT, PACKAGES, PROGRAMS, user
from cluster import Cluster
from counting import Counting
from host import ClusterError, check_installed
from lab import Lab, until
from system import missing

from harness.backends import BackendRefused
from harness.stage import KINDS

pytestmark = [pytest.mark.long, pytest.mark.slurm]


@pytest.fixture(scope="module")
def accounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One node, slurmdbd and its database; skipped, or failed in CI, where they are missing."""
    try:
        check_installed()
        check_installed(PROGRAMS, PACKAGES)
    except ClusterError as error:
        missing(str(error))
    folder = tmp_path_factory.mktemp("accounting") / "cluster"
    cluster = Cluster(folder, nodes=1, tied=True, accounting=True)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


def limit(cluster: Cluster, *words: str) -> None:
    """Changes the limits of the only account."""
    done = cluster.call("sacctmgr", "-i", "modify", "user", user(), "set", *words)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def lab(
    accounted: Cluster, code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Lab]:
    monkeypatch.setitem(KINDS, Counting.kind, "counting:Counting")
    wanted = {name: (Counting(name, hold=str(tmp_path / name)), []) for name in "abcd"}
    yield Lab(accounted, tmp_path, code, wanted, account=ACCOUNT)
    accounted.call("scancel", "--me")
    limit(accounted, "MaxSubmitJobs=-1", "MaxJobs=-1")


def test_a_limit_of_the_account_holds_back_the_rest_for_the_next_run(lab: Lab) -> None:
    limit(lab.slurm, "MaxSubmitJobs=2", "MaxJobs=1")
    with pytest.raises(BackendRefused) as refused:
        lab.run()
    assert str(refused.value).startswith(f"{lab.stages['c'].path}: AssocMaxSubmitJobLimit")
    assert str(refused.value).endswith("; 2 jobs were submitted before it")
    assert lab.store.attempts(lab.folder("c")) == []
    lab.held("a")
    waiting = lab.live("b")
    assert waiting is not None and (waiting.state, waiting.reason) == (
        "queued",
        "AssocMaxJobsLimit",
    )
    for name in lab.stages:
        lab.release(name)

    until(lab.runs_out, "all stages done")
    lab.assert_counted_once()
    assert [len(lab.store.attempts(lab.folder(name))) for name in lab.stages] == [1] * 4
    ended = lab.slurm.call("sacct", "-n", "-X", "-P", "-o", "JobName,State").stdout
    assert f"{lab.stages['a'].path}|COMPLETED" in ended


def test_an_account_that_does_not_exist_is_refused_in_slurms_words(
    accounted: Cluster, code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, Counting.kind, "counting:Counting")
    lab = Lab(accounted, tmp_path, code, {"a": (Counting("a"), [])}, account="nobody")
    with pytest.raises(BackendRefused, match="Invalid account or account/partition combination"):
        lab.run()
    assert lab.store.attempts(lab.folder("a")) == []
