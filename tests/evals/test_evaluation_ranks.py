"""Two ranks measure what one measures: BatchNorm, LARS, mixing, neighbours and scores included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from two_processes import run_two
from two_ranks_evaluations import TASKS, run_all

from methods.engine.work import Layout


def test_two_ranks_measure_what_one_measures(data: Path, tmp_path: Path) -> None:
    two = tmp_path / "two"
    two.mkdir()
    run_two(Path(__file__).with_name("two_ranks_evaluations.py"), two, data, two)
    found = json.loads((two / "metrics.json").read_text())
    expected = run_all(tmp_path / "one", data, Layout())
    for name in TASKS:
        # A float on the edge may tip one of the 22 images, or some pixels.
        assert found[name] == pytest.approx(expected[name], abs=5), name
        losses = [_losses(folder / name) for folder in (two, tmp_path / "one")]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3), name
        assert len(losses[0]) == 0 if name == "knn" else losses[0]


def _losses(folder: Path) -> list[float]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["loss"] for line in lines]
