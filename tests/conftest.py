"""What several test files share: a data root, and one tiny comparison."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command_line import PLANTED, harness

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root that all tests of a session share."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def comparison(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """The folder in which the tiny comparison was run, from nothing; its store is runs/.

    It ran among secrets, which tests/test_planted_secret.py looks for.
    """
    folder = tmp_path_factory.mktemp("comparison")
    words = ("run", "--scale", "tiny", "--data", data, "--jobs", 2)
    done = harness(*words, cwd=folder, variables=PLANTED)
    (folder / "printed.txt").write_text(done.stdout)
    return folder
