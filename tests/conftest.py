"""What several test files share: the command line as a user calls it, and one tiny comparison."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

Run = Callable[..., subprocess.CompletedProcess[str]]


def harness(*words: object, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """`harness WORDS...` in a process of its own."""
    command = [sys.executable, "-m", "harness.cli", *map(str, words)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=900)
    if check and done.returncode:
        raise AssertionError(f"{command} left with {done.returncode}\n{done.stdout}{done.stderr}")
    return done


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root that all tests of a session share."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def comparison(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """The folder in which the tiny comparison was run, from nothing; its store is runs/."""
    folder = tmp_path_factory.mktemp("comparison")
    done = harness("run", "--scale", "tiny", "--data", data, "--jobs", 2, cwd=folder)
    (folder / "printed.txt").write_text(done.stdout)
    return folder
