"""Predicted masks beside the ground truth, on four validation images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evals.segmentation_data import IGNORED, Pictures, ValidationSample
from evals.segmentation_mmseg import SegDataSample
from methods.engine.pictures import LARGE, Strip, Tile, heat, indices, photo

# Okabe and Ito's colours, which the colour-blind tell apart, then others of another lightness.
COLOURS = np.array(
    [
        (130, 130, 130),
        (230, 159, 0),
        (86, 180, 233),
        (0, 158, 115),
        (240, 228, 66),
        (0, 114, 178),
        (213, 94, 0),
        (204, 121, 167),
        (94, 60, 30),
        (200, 235, 200),
        (60, 20, 110),
        (255, 255, 255),
    ],
    np.uint8,
)
NAMED = 3  # classes of an image that the text names, the largest first

Predict = Callable[[list[dict[str, Any]]], Iterable[SegDataSample]]


def strips(pictures: Pictures, predict: Predict) -> Iterator[Strip]:
    """Images, true masks, predicted masks, and where they differ; classes are also named."""
    transform, generator = ValidationSample(pictures), np.random.default_rng(0)
    packed = [transform(pictures[at], generator)["packed"] for at in indices(len(pictures))]
    samples = list(predict(packed))
    names = pictures.dataset.metainfo["classes"]
    truth = [_thinned(each.gt_sem_seg.data[0]) for each in samples]
    found = [_thinned(each.pred_sem_seg.data[0]) for each in samples]
    images = [photo(each["inputs"].flip(0) / 255) for each in packed]  # OpenCV's order is BGR
    yield Strip("1-images", "validation images of segmentation", images)
    yield Strip("2-truth", f"true masks: {_named(truth, names)}", list(map(_mask, truth)))
    yield Strip("3-predicted", f"predicted masks: {_named(found, names)}", list(map(_mask, found)))
    wrong = [
        torch.where(one == IGNORED, torch.nan, (one != other).float())
        for one, other in zip(truth, found, strict=True)
    ]
    share = float(torch.cat([each.flatten() for each in wrong]).nanmean())
    text = f"wrong pixels (bright), {share:.0%} of the labelled ones"
    yield Strip("4-wrong", text, [heat(each) for each in wrong])


def _thinned(labels: Tensor) -> Tensor:
    """Every k-th pixel of labels (H, W), few enough that no file averages two classes."""
    step = -(-max(labels.shape) // LARGE)
    return labels[::step, ::step].cpu()


def _mask(labels: Tensor) -> Tile:
    """Labels (H, W) in colours; what is not labelled is left out."""
    index = labels.numpy().astype(int)
    opacity = np.where(index == IGNORED, 0, 255).astype(np.uint8)
    return np.dstack([COLOURS[index % len(COLOURS)], opacity])


def _named(masks: list[Tensor], names: tuple[str, ...]) -> str:
    """`brick and moon; fur`: the classes of each image, the largest first."""
    words = []
    for labels in masks:
        counts = torch.bincount(labels[labels != IGNORED].flatten().long(), minlength=len(names))
        largest = counts.argsort(descending=True)[:NAMED].tolist()
        words.append(" and ".join(names[each] for each in largest if counts[each]) or "nothing")
    return "; ".join(words)
