"""The bench of loading: both sides make the same views, and rows say what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import methods
from harness.bench import loading
from harness.bench.table import read
from harness.cli import main
from harness.study import load_scale
from methods.data.mixing import normalise, to_float

PAPER = load_scale("paper")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "COUNT", 4)


@pytest.mark.usefixtures("few")
def test_the_photographs_are_as_large_as_imagenets(tmp_path: Path) -> None:
    files = sorted(loading.photographs(tmp_path).iterdir())
    assert len(files) == 4
    assert 70e3 < np.mean([file.stat().st_size for file in files]) < 150e3
    for file in files:
        with Image.open(file) as image:
            assert image.size == (500, 375) and image.format == "JPEG"


@pytest.mark.parametrize("name", loading.DEFAULT)
def test_the_reference_gives_the_views_that_ours_gives(name: str) -> None:
    """In shape, and in the mean colour over many draws: the recipes are one distribution."""
    (pipeline,) = loading.pipelines([name], PAPER)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC)
    transform, views = loading.reference(pipeline.augmentation), pipeline.augmentation.build()
    torch.manual_seed(0)
    theirs = transform(picture)
    theirs = theirs if isinstance(theirs, list) else [theirs]
    ours = views(picture, np.random.default_rng(0))
    shapes = [tuple(ours[view].shape) for view in ("image", "second") if view in ours]
    assert [tuple(each.shape) for each in theirs] == shapes
    assert name != "cae" or shapes == [(3, 224, 224), (3, 112, 112)]
    if name in ("milan", "linear"):  # nothing but places is drawn, so the means agree
        drawn = [views(picture, np.random.default_rng(seed))["image"] for seed in range(60)]
        mine = normalise(to_float(torch.stack(drawn)), pipeline.augmentation.statistics)
        other = torch.stack([transform(picture) for _ in range(60)])
        assert float((mine.mean((0, 2, 3)) - other.mean((0, 2, 3))).abs().max()) < 0.12


@pytest.mark.usefixtures("few")
def test_the_command_prints_and_keeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "--loading", "--scale", "paper", "--steps", "1", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as left:
        main([*words, "--methods", "milan", "--evals", "finetune", "--format", "json"])
    assert left.value.code == 0
    rows: list[Any] = json.loads(capsys.readouterr().out)
    assert rows == read(tmp_path) and [row["name"] for row in rows] == ["milan", "finetune"]
    for row in rows:
        assert row["images_per_core_second"] > 1 and row["peer"]["ratio"] > 0.2
    assert [row["peer"]["name"] for row in rows] == ["torchvision", "timm"]
    assert "| milan |" in loading.render(rows)


def test_every_method_has_a_pipeline() -> None:
    names = methods.names()
    assert [each.name for each in loading.pipelines(names, PAPER)] == list(names)
    with pytest.raises(SystemExit) as left:
        main(["bench", "--loading", "--methods", "miln"])
    assert left.value.code == 2
