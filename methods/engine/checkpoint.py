"""Checkpoints that survive a kill, a full disk and a flipped bit.

A checkpoint is `step-<updates done>-<sha256>.pt`: plain containers and tensors, written under a
temporary name, flushed to the disk and renamed, so that a file of that name is whole. Its name
carries the checksum of its bytes, which is compared before anything is unpacked; unpacking is
torch's `weights_only`, which runs no code of the file.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from methods.errors import StageError
from methods.parts.size import KEPT

NAME = re.compile(r"step-(\d{10})-([0-9a-f]{64})\.pt")
ASIDE = ".writing-"


class _Hashed:
    """A file that computes the checksum of what is written and keeps the first error.

    torch's writer turns an error into others on the way out, so writes after it do nothing.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if self.error is None:
            try:
                self.file.write(data)
                self.digest.update(data)
            except OSError as error:
                self.error = error
        return size

    def flush(self) -> None:
        """Nothing: the whole is flushed once, at the end."""


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write `state` as the checkpoint after `step` updates and keep the last two.

    Raises StageError("disk") where it cannot be written; what was there is intact then.
    """
    aside = folder / f"{ASIDE}{step}-{os.getpid()}"
    try:
        folder.mkdir(exist_ok=True)  # no parents: they may have been removed on purpose
        digest = _write(aside, state)
        path = folder / f"step-{step:010d}-{digest}.pt"
        os.replace(aside, path)
        _flush_folder(folder)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise StageError("disk", f"{folder}: checkpoint {step} not written: {error}") from error
    for old in [each for each in listed(folder) if each != path][KEPT - 1 :]:
        old.unlink(missing_ok=True)
    return path


def _write(path: Path, state: dict[str, Any]) -> str:
    with path.open("wb") as file:
        hashed = _Hashed(file)
        torch.save(state, cast("IO[bytes]", hashed))
        if hashed.error is not None:
            raise hashed.error
        file.flush()
        os.fsync(file.fileno())
    return hashed.digest.hexdigest()


class Writer:
    """Writes checkpoints into `folder` while training goes on, one at a time.

    Training waits for the copy of its state, and for the write before where that still goes on.
    As a context it waits for the last one; an exception of its body comes before the writer's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds = 0.0
        """How long the last write took."""
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.finish()
        except Exception:
            if kind is None:
                raise

    def start(self, step: int, state: dict[str, Any]) -> None:
        """Write `state`, as it is now, as the checkpoint after `step` updates."""
        self.finish()
        arguments = (step, _copied(state))
        self._thread = threading.Thread(target=self._write, args=arguments, name="checkpoint")
        self._thread.start()

    def _write(self, step: int, state: dict[str, Any]) -> None:
        began = time.monotonic()
        try:
            save(self.folder, step, state)
        except Exception as error:  # raised in the training's own thread, by `finish`
            self._error = error
        self.seconds = time.monotonic() - began

    def check(self) -> None:
        """Raise StageError("disk") if a write that has ended went wrong; waits for none."""
        if self._thread is not None and not self._thread.is_alive():
            self.finish()

    def finish(self) -> None:
        """Wait until nothing is being written; raises StageError("disk") if that went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error


def _copied(state: Any) -> Any:
    """A copy on the CPU that training cannot change."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {name: _copied(value) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(map(_copied, state))
    return state


def _flush_folder(folder: Path) -> None:
    """Make the rename itself durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def listed(folder: Path) -> list[Path]:
    """The checkpoints of `folder`, the newest first, unverified."""
    files = [path for path in folder.glob("step-*.pt") if NAME.fullmatch(path.name)]
    return sorted(files, key=lambda path: (step_of(path), path.stat().st_mtime_ns), reverse=True)


def step_of(path: Path) -> int:
    """The number of updates in a checkpoint's name."""
    found = NAME.fullmatch(path.name)
    assert found is not None, path
    return int(found[1])


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose bytes match its checksum, and a note for each one passed over."""
    notes: list[str] = []
    for path in listed(folder):
        problem = _problem(path)
        if problem is None:
            return path, notes
        notes.append(f"checkpoint {path.name[:15]} of {folder} is {problem}; going back")
    return None, notes


def _problem(path: Path) -> str | None:
    found = NAME.fullmatch(path.name)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"unreadable ({error.strerror})"
    return None if found and digest == found[2] else "broken (its checksum differs)"


def read(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, its tensors on the CPU; StageError("weights") for another file."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of a file that is not one of ours
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        told = " ".join(str(error).split())[:200]
        raise StageError("weights", f"{path}: cannot be read safely ({told})") from None
    return state


def discard_unfinished(folder: Path) -> None:
    """Remove what a killed writer left; only the owner of the stage may."""
    for path in folder.glob(f"{ASIDE}*"):
        path.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; renamed to `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{ASIDE}{path.name}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file, with the user's umask: of itself the library shuts others out.

    Raises StageError("disk").
    """
    try:
        path.unlink(missing_ok=True)
        path.touch()
        mode = path.stat().st_mode
        save_file(tensors, path)
        path.chmod(mode)
    except (OSError, SafetensorError) as error:
        raise StageError("disk", f"{path}: cannot be written: {error}") from error
