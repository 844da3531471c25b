"""Tiny encoders and a tiny Patchwork for the evaluations' tests, on one thread."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
from tiny_evaluations import DATA

from methods.engine.work import Work
from methods.networks.encoders import initialised
from methods.parts.augment import mean_std
from methods.parts.encoder import Encoder

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data root with the tiny Patchwork."""
    root = tmp_path_factory.mktemp("data")
    DATA.prepare(root)
    return root


@pytest.fixture
def work(tmp_path: Path, data: Path) -> Callable[..., Work]:
    """Makes the work of a stage in a folder of its own."""

    def make(name: str = "stage", **changes: object) -> Work:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return Work(folder, data=data, **changes)  # type: ignore[arg-type]

    return make


@pytest.fixture
def exported(tmp_path: Path) -> Callable[..., Path]:
    """Writes the folder that pretraining leaves: encoder.json and encoder.safetensors."""

    def export(encoder: Encoder, seed: int = 0) -> Path:
        torch.manual_seed(seed)
        folder = tmp_path / f"pretrained-{type(encoder).__name__}-{seed}"
        folder.mkdir()
        state = {
            name: (value + 0.1 * torch.randn(value.shape)).contiguous()
            for name, value in initialised(encoder).state_dict().items()
        }
        model, arguments = encoder.timm()
        mean, std = mean_std("imagenet")
        plain = {"model": model, "arguments": arguments, "mean": mean, "std": std}
        (folder / "encoder.json").write_text(json.dumps(plain), encoding="utf-8")
        save_file(state, folder / "encoder.safetensors")
        return folder

    return export
