"""Multi-scale testing against mmsegmentation's own, and against a plain mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmcv.transforms import TestTimeAug as CopyOften
from mmseg.models import SegTTAModel
from PIL import Image
from tiny_evaluations import MASKS, segmentation

from evals.encoders import source
from evals.segmentation import Segmentation
from evals.segmentation_data import open_pictures
from evals.segmentation_model import build_segmentor
from evals.segmentation_scales import ScaledSample, averaged, resized
from methods.engine.work import Work

Make = Callable[..., Work]
SLIDE: dict[str, Any] = {"inference": "slide", "stride": 32}


def built(task: Segmentation, work: Work) -> Any:
    torch.manual_seed(1)
    segmentor = build_segmentor(task, source(work, task.encoder, task.seed, task.statistics))
    for item in segmentor.parameters():  # heads at their start predict one class everywhere
        item.data += 0.1 * torch.randn_like(item)
    return segmentor.eval()


def test_it_is_mmsegmentations(work: Make, data: Path) -> None:
    task = segmentation(scales=(1.0, 1.5), mirrored=True, **SLIDE)
    work_ = work()
    segmentor, pictures = built(task, work_), open_pictures(task, data, "validation")
    twice = CopyOften(
        [
            [{"type": "mmseg.Resize", "scale": resized(task, each)} for each in task.scales],
            [{"type": "mmseg.RandomFlip", "prob": each} for each in (0.0, 1.0)],
            [{"type": "mmseg.LoadAnnotations"}],
            [{"type": "mmseg.PackSegInputs"}],
        ]
    )
    for each in twice.subroutines:  # mmseg's own flips leave a Resize without keep_ratio
        each.transforms[0].keep_ratio = True
    theirs, views = SegTTAModel(module=segmentor), ScaledSample(task)
    load = pictures.dataset.pipeline.transforms[0]
    for index in range(4):
        with torch.no_grad():
            packed = views(pictures[index], np.random.default_rng(0))["packed"]
            [ours] = averaged(segmentor, [packed])
            copies = twice(load(dict(pictures[index])))
            batches = {name: [[copy] for copy in copies[name]] for name in copies}
            [expected] = theirs.test_step(batches)
        assert len(packed) == 4 and len(ours.pred_sem_seg.data.unique()) > 1
        same = (ours.pred_sem_seg.data == expected.pred_sem_seg.data).float().mean()
        assert float(same) == 1.0


def test_it_is_the_mean_of_the_probabilities(work: Make, data: Path) -> None:
    """Of an image that is not square, so that a mirror image turned the wrong way would show."""
    task = segmentation(scales=(1.0,), mirrored=True, **SLIDE)
    segmentor = built(task, work())
    views = ScaledSample(task)
    pictures = open_pictures(task, data, "validation")
    packed = views(pictures[0], np.random.default_rng(0))["packed"]
    [sample] = averaged(segmentor, [packed])
    mean, std = (
        torch.tensor(each).view(3, 1, 1)
        for each in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    )
    image = ((packed[0]["inputs"].flip(0).float() - mean) / std)[None]
    metas = [dict(packed[0]["data_samples"].metainfo)]
    with torch.no_grad():
        plain = segmentor.inference(image, metas).softmax(1)
        turned = segmentor.inference(image.flip(-1), metas).softmax(1).flip(-1)
    expected = (plain + turned).argmax(1)
    assert torch.equal(sample.pred_sem_seg.data, expected)


def test_the_stage_reports_both_and_the_card_says_so(work: Make) -> None:
    task = segmentation(scales=(1.25,), **SLIDE)
    metrics = task.run(work())
    assert set(metrics) == {"mIoU", "aAcc", "mAcc", "mIoU_multi_scale"}
    assert task.protocol()["scales"] == "single, no flip; multi-scale: 1.25"
    both = replace(task, scales=(0.5, 1.5), mirrored=True)
    assert both.protocol()["scales"] == "single, no flip; multi-scale: 0.5, 1.5, mirrored"
    assert segmentation(**SLIDE).protocol()["scales"] == "single, no flip"


def test_copies_of_a_long_image(data: Path, tmp_path: Path) -> None:
    """The shorter side is that of the scale, and no less than the crop."""
    import shutil

    shutil.copytree(MASKS.root(data), MASKS.root(tmp_path))
    task = segmentation(scales=(0.5, 1.0, 2.0), **SLIDE)
    folder = MASKS.root(tmp_path)
    name = sorted((folder / "images/validation").iterdir())[0].stem
    Image.fromarray(np.zeros((40, 400, 3), np.uint8)).save(
        folder / "images/validation" / f"{name}.jpg"
    )
    Image.fromarray(np.ones((40, 400), np.uint8)).save(
        folder / "annotations/validation" / f"{name}.png"
    )
    pictures = open_pictures(task, tmp_path, "validation")
    packed = ScaledSample(task)(pictures[0], np.random.default_rng(0))["packed"]
    sizes = [tuple(each["inputs"].shape[1:]) for each in packed]
    assert sizes == [(48, 480), (48, 480), (96, 960)]


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"scales": (0.0,)}, "scales"),
        ({"scales": (9.0,)}, "scales"),
        ({"mirrored": True}, "scales"),
    ],
)
def test_wrong_values_are_named(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        replace(segmentation(), **changes)
