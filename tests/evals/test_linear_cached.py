"""The linear probe on cached features: fixed views, the same order of images, its own protocol."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_evaluations import DATA, VALIDATION, linear

from evals.linear_cached import CachedStream
from harness.stage import Stage
from methods.data.augment import ToSample
from methods.data.stream import Stream
from methods.engine.work import Layout, Work, read_alarms
from methods.parts.augment import LinearAugmentation, Views
from methods.values import to_plain

Make = Callable[..., Work]


@dataclass(frozen=True)
class Still(LinearAugmentation):
    """A training augmentation that is the validation's transform."""

    def build(self) -> Views:
        return VALIDATION.build()


def test_it_is_the_probe_whose_augmentation_draws_nothing(work: Make) -> None:
    fixed, still = work("fixed"), work("still")
    metrics = linear(views="fixed").run(fixed)
    assert metrics == pytest.approx(replace(linear(), augmentation=Still(48)).run(still), abs=5)
    losses = [path.read_text().count("loss") for path in (fixed.metrics, still.metrics)]
    assert losses[0] == losses[1] > 0
    numbers = [_losses(each) for each in (fixed, still)]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-5)
    assert numbers[0] != pytest.approx(_losses_of_random_views(work), rel=1e-5)


def _losses(work: Work) -> list[float]:
    return [json.loads(line)["loss"] for line in work.metrics.read_text().splitlines()]


def _losses_of_random_views(work: Make) -> list[float]:
    usual = work("usual")
    linear().run(usual)
    assert not read_alarms(usual.folder)
    return _losses(usual)


def test_it_is_labelled_a_protocol_of_its_own(work: Make) -> None:
    given = work()
    linear(views="fixed").run(given)
    (alarm,) = read_alarms(given.folder)
    assert "a protocol of its own" in alarm
    assert float(given.report["seconds"]) > 0
    assert "its own protocol" in linear(views="fixed").protocol()["training views"]
    assert linear().protocol()["training views"] == "random crops and flips"


def test_the_usual_probe_keeps_its_key() -> None:
    usual, fixed = (Stage("linear", "a", task) for task in (linear(), linear(views="fixed")))
    assert "views" not in to_plain(linear(), sparse=True)
    assert usual.key != fixed.key


@pytest.mark.parametrize("rank", [0, 1])
def test_the_order_is_that_of_images(rank: int, data: Path) -> None:
    """Also in micro-batches, on two ranks, from a later step on."""
    layout = Layout(rank=rank, world=2, device_batch=4)
    images = DATA.open(data, "train")
    stream = Stream(images, ToSample(VALIDATION.build()), 16, 3, layout, 2, unit=1)
    features = torch.arange(len(images)).float().view(-1, 1)
    cached = CachedStream(features, torch.from_numpy(images.labels), 16, 3, layout, 2)
    for wanted, found in zip(islice(stream, 3), islice(cached, 3), strict=True):
        assert len(wanted) == len(found) == 2
        for image, feature in zip(wanted, found, strict=True):
            _same(image, feature)


def _same(image: dict[str, Any], feature: dict[str, Any]) -> None:
    assert feature["index"].tolist() == image["index"].tolist()
    assert feature["label"].tolist() == image["label"].tolist()
    assert feature["image"].flatten().tolist() == image["index"].tolist()
