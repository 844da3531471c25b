"""The estimate of a dry run: the bench's counts, the profile's GPU, the stage's own schedule."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

import methods
from harness.bench.projection import GPUS, PRODUCT_SHARE, Step
from harness.cluster import Resources
from harness.estimate import estimated_hours
from harness.plan import make_plan
from harness.stage import Stage
from harness.study import Study, load_scale

FLOPS = 1e11
COUNTS = {**{each.name: 0.0 for each in fields(Step)}, "flops": FLOPS}


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """Rows as the bench keeps them, of steps that are nothing but products."""
    rows = [
        {"name": "mae", "encoder": "ViT-B/16", "counts": {"flops": 1.0}},  # of an older bench
        {"name": "mae", "encoder": "ViT-B/16", "counts": COUNTS},
        {"name": "vqkd", "encoder": "12x768/16", "counts": COUNTS},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return tmp_path


def stages(scale: str) -> dict[str, Stage]:
    study = Study("estimate", methods=("mae", "beitv2"), evals=("linear",))
    plan = make_plan(study, load_scale(scale))
    return {f"{stage.kind}/{stage.label}": stage for stage in plan.stages.values()}


@pytest.mark.parametrize("nodes", [1, 2])
def test_products_decide_whatever_the_layout(bench: Path, nodes: int) -> None:
    wants, found = Resources(nodes=nodes, gpus=8, gpu="A100", device_batch=64), stages("paper")
    rate = PRODUCT_SHARE * GPUS["A100"].flops * 3600
    epochs, images = methods.get("mae").optimisation.epochs, 1_281_167
    expected = epochs * images * FLOPS / rate
    assert estimated_hours(found["pretrain/mae-s0"], wants, bench) == pytest.approx(expected, 0.01)
    expected = 100 * images * FLOPS / rate
    assert estimated_hours(found["tokenizer/vqkd"], wants, bench) == pytest.approx(expected, 0.01)


def test_what_was_not_counted_is_not_estimated(bench: Path, tmp_path: Path) -> None:
    wants, paper = Resources(gpus=8, gpu="H100"), stages("paper")
    for name in ("pretrain/beitv2-s0", "linear/mae-s0", "teacher/clip"):
        assert estimated_hours(paper[name], wants, bench) is None
    assert estimated_hours(stages("mini")["pretrain/mae-s0"], wants, bench) is None
    assert estimated_hours(paper["pretrain/mae-s0"], Resources(gpus=8), bench) is None
    assert estimated_hours(paper["pretrain/mae-s0"], wants, tmp_path / "none") is None
