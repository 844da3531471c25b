"""A store that lies on several file systems, where renaming from one to another is refused."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kill_trials import lines

from harness import provenance
from harness.backends.local import LocalBackend
from harness.cli import main
from harness.drive import LocalRun
from harness.plan import Plan, make_plan
from harness.store import Outcome, Store
from harness.study import load_scale, load_study
from methods.errors import StageError


@pytest.fixture
def plan() -> Plan:
    """MAE's pretraining at the tiny scale, and its evaluation."""
    study = dataclasses.replace(load_study("comparison"), references=(), evals=("linear",))
    return make_plan(study.only(("mae",)), load_scale("tiny"))


@pytest.fixture(scope="module")
def backend() -> LocalBackend:
    return LocalBackend()


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than `tmp_path`."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system at /dev/shm")
    made = Path(tempfile.mkdtemp(dir=memory))
    yield made
    shutil.rmtree(made)


@contextmanager
def mounted(place: Path, size: str) -> Iterator[None]:
    """A small file system of its own at `place`."""
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("mounting a file system needs root")
    place.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def run(
    store: Store, plan: Plan, backend: LocalBackend, data: Path, retry: tuple[str, ...] = ()
) -> set[str]:
    """What `harness run` does; the states of the stages at its end."""
    load_scale("tiny").data.prepare(data)
    job = {"backend": "local", "host": provenance.host(), "data": str(data)}
    running = LocalRun(store, plan, backend, 2, lambda _: job, {}, None, set(retry))  # type: ignore[arg-type]
    return {each.state for each in running.until_settled(lambda _: None).values()}


def results(folder: Path) -> tuple[bytes, list[dict[str, float]]]:
    return (folder / "encoder.safetensors").read_bytes(), lines(folder)


def test_attempts_on_another_file_system(
    tmp_path: Path, elsewhere: Path, plan: Plan, backend: LocalBackend, data: Path
) -> None:
    """A failed attempt's outcome and a finished one's results are copied there, as renamed else."""
    store = Store(tmp_path / "runs").create()
    stage = next(each for each in plan.stages.values() if each.kind == "pretrain")
    folder = store.add(stage, {})
    (folder / "attempts").symlink_to(elsewhere)
    first = store.begin_attempt(folder, {"backend": "local", "host": "elsewhere"})
    store.finish(folder, Outcome("failed", error={"reason": "data"}, attempt=first))
    with pytest.raises(OSError, match="cross-device"):
        (folder / "outcome.json").rename(elsewhere / "outcome.json")

    assert run(store, plan, backend, data) == {"done"}
    assert not (store.outcome(elsewhere / first) or Outcome("done")).done
    wanted, done = results(folder), store.outcome(folder)
    assert done is not None
    assert run(store, plan, backend, data, retry=(stage.key,)) == {"done"}
    assert results(folder) == wanted
    assert results(elsewhere / done.attempt) == wanted
    assert store.outcome(elsewhere / done.attempt) == done
    assert any((elsewhere / done.attempt / "state").iterdir())
    assert len(store.attempts(folder)) == 3


def test_what_cannot_be_moved_is_named_and_the_stage_stays_done(
    tmp_path: Path, plan: Plan, backend: LocalBackend, data: Path
) -> None:
    """The folder of the checkpoints is a mount, which cannot be moved by whatever means."""
    store = Store(tmp_path / "runs").create()
    stage = next(each for each in plan.stages.values() if each.kind == "pretrain")
    folder = store.add(stage, {})
    with mounted(folder / "state", "32m"):
        assert run(store, plan, backend, data) == {"done"}
        wanted, done = results(folder), store.outcome(folder)
        with pytest.raises(StageError, match=f"{folder}/state: cannot be moved to .*busy"):
            run(store, plan, backend, data, retry=(stage.key,))
        assert results(folder) == wanted and store.outcome(folder) == done
        assert run(store, plan, backend, data) == {"done"}


def test_a_store_that_is_full_is_told_in_one_line(tmp_path: Path, data: Path, capsys: Any) -> None:
    store = tmp_path / "runs"
    with mounted(store, "64k"):
        (store / "full").write_bytes(bytes(60 * 1024))
        with pytest.raises(SystemExit) as left:
            words = ("--store", store, "--data", data, "--scale", "tiny", "--methods", "mae")
            main(["run", *map(str, words)])
        told = capsys.readouterr().err
        assert sorted(each.name for each in (store / "snapshots").iterdir()) == []
    assert left.value.code == 1
    assert told.startswith(f"error: {store}/") and told.endswith(": No space left on device\n")
    assert told.count("\n") == 1
