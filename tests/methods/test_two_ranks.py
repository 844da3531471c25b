"""Two ranks pretrain as one does, with every method."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import two_rank_methods
from safetensors.torch import load_file
from two_processes import start_two, wait_for_two


def train(
    root: Path, frozen: Path, option: str = "", names: tuple[str, ...] = two_rank_methods.NAMES
) -> tuple[Path, Path]:
    """The folders of the methods as one rank, and as two with the option, left them."""
    one, two, data = root / "one", root / "two", root / "data"
    two.mkdir()
    two_rank_methods.DATA.prepare(data)
    script = Path(two_rank_methods.__file__)
    ranks = start_two(script, two, two, frozen, data, option, *names)
    two_rank_methods.run_all(one, frozen, data, rank=0, world=1, names=names)
    assert not (problem := wait_for_two(ranks, two)), problem
    return one, two


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, needs: dict[str, Path]) -> tuple[Path, Path]:
    """Of all methods: the folders that one rank, and two, left."""
    return train(tmp_path_factory.mktemp("ranks"), needs["clip"].parent)


def assert_alike(folders: tuple[Path, Path], name: str) -> None:
    curves = []
    for folder in folders:
        lines = (folder / name / "metrics.jsonl").read_text().splitlines()
        curves.append([json.loads(line)["loss"] for line in lines])
    assert len(curves[0]) == 4
    assert curves[1] == pytest.approx(curves[0], rel=5e-3)


@pytest.mark.parametrize("name", two_rank_methods.NAMES)
def test_two_ranks_train_alike(both: tuple[Path, Path], name: str) -> None:
    assert_alike(both, name)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++ on a CPU")
def test_two_ranks_train_alike_compiled(tmp_path: Path, needs: dict[str, Path]) -> None:
    """And with blocks that are computed a second time."""
    folders = train(tmp_path, needs["clip"].parent, "compiled", ("simmim",))
    assert_alike(folders, "simmim")
    assert not (folders[1] / "simmim" / "alarms.txt").exists()  # it has not fallen back


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory, needs: dict[str, Path]) -> tuple[Path, Path]:
    """The same as `both`, with two ranks that share parameters in every second attempt."""
    return train(tmp_path_factory.mktemp("sharded"), needs["clip"].parent, "sharded")


@pytest.mark.parametrize("name", two_rank_methods.NAMES)
def test_ranks_that_share_parameters_train_alike(
    both: tuple[Path, Path], sharded: tuple[Path, Path], name: str
) -> None:
    assert_alike(sharded, name)
    executed = (sharded[1] / name / "execution").read_text()
    assert executed == "eager, activation checkpointing, sharded"
    whole, shared = (load_file(two / name / "encoder.safetensors") for _, two in (both, sharded))
    assert whole.keys() == shared.keys()
    for key, weights in whole.items():
        torch.testing.assert_close(shared[key], weights, rtol=1e-4, atol=1e-5, msg=f"{name} {key}")


@pytest.mark.parametrize("name", two_rank_methods.NAMES)
def test_the_first_of_two_ranks_draws_alone(both: tuple[Path, Path], name: str) -> None:
    one, two = ({each.name for each in (root / name / "pictures").iterdir()} for root in both)
    assert one == two and "1-images.png" in one
