"""Two ranks train the same teacher and the same tokenizer as one: the global batch decides."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_teachers import clip_task, vqkd_task

from methods.engine.work import Work
from methods.teachers import load_teacher, load_tokenizer

HERE = Path(__file__).parent


def start_two(folder: Path, *words: Path) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": f"{HERE.parents[1]}:{HERE}",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [
        subprocess.Popen(
            [sys.executable, HERE / "two_teacher_ranks.py", str(rank), folder, *words],
            env=environment,
            stderr=(folder / f"errors{rank}").open("wb"),
        )
        for rank in (0, 1)
    ]


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
    for attempt in range(3):  # another program may take the port between asking and using it
        two = folders(root / f"two{attempt}")
        codes = [p.wait(timeout=240) for p in start_two(two, scenes, teacher_folder)]
        if codes == [0, 0] or "could not meet" not in (two / "errors0").read_text():
            break
    assert codes == [0, 0], (two / "errors0").read_text() + (two / "errors1").read_text()
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
