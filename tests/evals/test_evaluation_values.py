"""The evaluations as values: no torch, plain data and back, checks, protocol cards."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from tiny_evaluations import BEIT, finetune, knn, linear, segmentation

from evals.finetune import FineTuning
from evals.linear import LinearProbe
from evals.segmentation import Segmentation
from methods.errors import InputError
from methods.values import from_plain, to_plain, with_fields

TASKS = [linear(BEIT), finetune(), segmentation(), knn()]


def test_importing_the_values_imports_neither_torch_nor_mmseg() -> None:
    code = (
        "import sys, evals.finetune, evals.knn, evals.linear, evals.segmentation; "
        "heavy = {'torch', 'timm', 'mmseg', 'mmengine', 'mlflow'} & sys.modules.keys(); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_a_task_survives_plain_data_and_has_a_card(task: Any) -> None:
    plain = json.loads(json.dumps(to_plain(task)))
    assert from_plain(type(task), plain) == task
    card = task.protocol()
    assert json.loads(json.dumps(card)) == card
    assert "statistics" in card


def test_the_published_rates_are_what_the_papers_say() -> None:
    # MAE ViT-B: FINETUNE.md; the linear probe's 0.1 per 256 at batch 16384 is 6.4.
    assert LinearProbe(BEIT).optimisation.peak == pytest.approx(6.4)
    assert FineTuning(BEIT).optimisation.peak == pytest.approx(2e-3)
    assert Segmentation(BEIT).optimisation.peak == pytest.approx(1e-4)


def test_blocks_follow_the_depth() -> None:
    task = segmentation()
    taken = {depth: task.taken(depth) for depth in (4, 12, 24, 32)}
    assert taken[4] == (0, 1, 2, 3)
    assert taken[12] == (3, 5, 7, 11)
    assert taken[24] == (7, 11, 15, 23)
    assert with_fields(task, {"blocks": [0, 1, 2, 3]}, "set").taken(12) == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("task", "path", "value"),
    [
        (linear(), "rates", [0.0]),
        (linear(), "holdout", 1),
        (linear(), "layer", -1),
        (finetune(), "drop_path", 1.0),
        (finetune(), "head_scale", 0.0),
        (knn(), "neighbours", 0),
        (knn(), "temperature", 0.0),
        (segmentation(), "blocks", [3, 2, 1, 0]),
        (segmentation(), "crop", 0),
        (segmentation(), "ratio", [2.0, 0.5]),
        (segmentation(), "cat_max", 0.0),
        (segmentation(), "inference", "slides"),
    ],
)
def test_what_cannot_be_is_refused_by_name(task: Any, path: str, value: Any) -> None:
    with pytest.raises(InputError, match=path):
        with_fields(task, {path: value}, "set")
