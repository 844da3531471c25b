"""Lets the tests import the tiny methods, and gives them frozen networks, on one thread."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)

import tiny_methods  # noqa: E402


@pytest.fixture(scope="session")
def needs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a CLIP and a VQ-KD tokenizer that were never trained, by role."""
    return tiny_methods.frozen_folders(tmp_path_factory.mktemp("frozen"))


@pytest.fixture(scope="session")
def frozen(needs: dict[str, Path]) -> dict[str, torch.nn.Module]:
    """The same, loaded."""
    return tiny_methods.load(needs)
