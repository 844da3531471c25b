"""Two ranks train the same teacher and the same tokenizer as one: the global batch decides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_teachers import clip_task, vqkd_task
from two_processes import run_two

from methods.engine.work import Work
from methods.teachers import load_teacher, load_tokenizer


def folders(root: Path) -> Path:
    for name in ("clip", "vqkd", "sharded"):
        (root / name).mkdir(parents=True)
    return root


@pytest.fixture(scope="module")
def both(
    tmp_path_factory: pytest.TempPathFactory, scenes: Path, teacher_folder: Path
) -> tuple[Path, Path]:
    """The folders of one rank's run and of two ranks'."""
    root = tmp_path_factory.mktemp("ranks")
    one = folders(root / "one")
    clip_task(image_image_weight=0.5).run(Work(one / "clip", data=scenes))
    vqkd_task().run(Work(one / "vqkd", {"clip": teacher_folder}, scenes))
    two, script = folders(root / "two"), Path(__file__).with_name("two_teacher_ranks.py")
    run_two(script, two, two, scenes, teacher_folder)
    return one, two


def column(folder: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


@pytest.mark.parametrize("name", ["loss", "image_text", "image_image", "logit_scale"])
def test_clip(both: tuple[Path, Path], name: str) -> None:
    one, two = (column(root / "clip", name) for root in both)
    assert len(one) == 3
    assert two == pytest.approx(one, rel=1e-3)


@pytest.mark.parametrize("name", ["loss", "reconstruction", "commitment"])
def test_vqkd(both: tuple[Path, Path], name: str) -> None:
    one, two = (column(root / "vqkd", name) for root in both)
    assert two[:6] == pytest.approx(one[:6], rel=2e-2)  # a near-tie may fall either way
    assert two[0] == pytest.approx(one[0], rel=1e-3)


def test_vqkd_with_shared_parameters(both: tuple[Path, Path]) -> None:
    _, two = both
    losses = [column(two / name, "loss") for name in ("vqkd", "sharded")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert load_tokenizer(two / "sharded").grid == (3, 3)


def test_rank_0_leaves_the_folders(both: tuple[Path, Path]) -> None:
    _, two = both
    assert load_teacher(two / "clip").grid == load_tokenizer(two / "vqkd").grid == (3, 3)
