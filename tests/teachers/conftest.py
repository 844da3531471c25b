"""Lets the tests import the tiny teachers, and shares what is slow to make, on one thread."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)

import tiny_teachers  # noqa: E402


@pytest.fixture(scope="session")
def scenes(data: Path) -> Path:
    """A data root with the tiny Patchwork."""
    tiny_teachers.SCENES.prepare(data)
    return data


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP that was never trained."""
    return tiny_teachers.untrained_clip(tmp_path_factory.mktemp("clip"))
