"""Checkpoints: whole, or passed over, or refused in words."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from methods.engine import checkpoint
from methods.errors import StageError


def state(step: int, size: int = 1000) -> dict[str, Any]:
    return {"step": step, "nested": [{"a": torch.arange(size) + step, "b": (1.5, None, "x")}]}


def test_round_trip_and_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 20, 3, 100):
        checkpoint.save(tmp_path, step, state(step))
    path, notes = checkpoint.newest(tmp_path)
    assert path is not None and notes == []
    found = checkpoint.read(path)
    assert found["step"] == 100
    assert torch.equal(found["nested"][0]["a"], state(100)["nested"][0]["a"])
    assert found["nested"][0]["b"] == (1.5, None, "x")
    assert [checkpoint.step_of(each) for each in checkpoint.listed(tmp_path)] == [100, 20]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_writer_writes_the_state_as_it_was(tmp_path: Path) -> None:
    """The training goes on in the same tensors."""
    changing = state(7, 3_000_000)
    with checkpoint.Writer(tmp_path) as writer:
        writer.start(7, changing)
        changing["nested"][0]["a"].zero_()
    path, _ = checkpoint.newest(tmp_path)
    assert path is not None
    assert torch.equal(
        checkpoint.read(path)["nested"][0]["a"], state(7, 3_000_000)["nested"][0]["a"]
    )


def test_a_writer_tells_of_a_refused_write_once(tmp_path: Path) -> None:
    writer = checkpoint.Writer(tmp_path)
    with largest_file(100_000):
        writer.start(2, state(2, 1_000_000))
        with pytest.raises(StageError, match="checkpoint 2 not written"):
            writer.finish()
    writer.check()
    with pytest.raises(KeyError), largest_file(100_000), writer:
        writer.start(3, state(3, 1_000_000))
        raise KeyError("what ended the training")


def test_nothing_there(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "state") == (None, [])


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty])
def test_damage_falls_back_to_the_one_before(tmp_path: Path, damage: Any) -> None:
    before, last = (checkpoint.save(tmp_path, step, state(step)) for step in (5, 6))
    damage(last)
    path, notes = checkpoint.newest(tmp_path)
    assert path == before
    assert len(notes) == 1 and "step-0000000006" in notes[0] and "checksum" in notes[0]
    damage(before)
    path, notes = checkpoint.newest(tmp_path)
    assert path is None and len(notes) == 2


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    path = checkpoint.save(tmp_path / "state", 1, {"x": Attack()})
    with pytest.raises(Exception, match="mkdir|weights_only|Weights only"):
        checkpoint.read(path)
    assert not (tmp_path / "ran").exists()


def test_unfinished_ones_are_not_taken_and_removed(tmp_path: Path) -> None:
    kept = checkpoint.save(tmp_path, 1, state(1))
    (tmp_path / ".writing-9-1").write_bytes(b"half")
    assert checkpoint.newest(tmp_path) == (kept, [])
    checkpoint.discard_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == [kept]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The kernel refuses to let a file of this process grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_refused(folder: Path, kept: Path) -> None:
    with pytest.raises(StageError, match="checkpoint 2 not written") as raised:
        checkpoint.save(folder, 2, state(2, 1_000_000))
    assert raised.value.reason == "disk"
    assert list(folder.iterdir()) == [kept]
    assert checkpoint.newest(folder) == (kept, [])


def test_a_refused_write_leaves_what_was_there(tmp_path: Path) -> None:
    kept = checkpoint.save(tmp_path, 1, state(1))
    with largest_file(100_000):
        assert_refused(tmp_path, kept)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    command = [mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    try:
        kept = checkpoint.save(tmp_path, 1, state(1))
        assert_refused(tmp_path, kept)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_replacing(tmp_path: Path) -> None:
    path = tmp_path / "a" / "file.json"
    with checkpoint.replacing(path) as aside:
        aside.write_text("1")
    with pytest.raises(RuntimeError), checkpoint.replacing(path) as aside:
        aside.write_text("2")
        raise RuntimeError
    assert path.read_text() == "1"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("umask", "mode"), [(0o002, 0o664), (0o022, 0o644), (0o077, 0o600)])
def test_who_may_read_a_file_of_tensors(umask: int, mode: int, tmp_path: Path) -> None:
    path, before = tmp_path / "one.safetensors", os.umask(umask)
    try:
        for _ in range(2):
            checkpoint.save_tensors({"a": torch.ones(3)}, path)
            assert path.stat().st_mode & 0o777 == mode
    finally:
        os.umask(before)
    assert torch.equal(load_file(path)["a"], torch.ones(3))


def test_a_full_disk_under_a_file_of_tensors(tmp_path: Path) -> None:
    with largest_file(100_000), pytest.raises(StageError, match="one.safetensors") as raised:
        checkpoint.save_tensors({"a": torch.ones(1_000_000)}, tmp_path / "one.safetensors")
    assert raised.value.reason == "disk"
