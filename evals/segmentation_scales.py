"""Segmentation tested at several scales: the mean of what is predicted for copies of an image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from evals.segmentation import Segmentation
from evals.segmentation_data import packed_by, validation_pipeline
from evals.segmentation_mmseg import Compose, EncoderDecoder, PixelData, SegDataSample

Copies = list[dict[str, Any]]
UNLIMITED = 2**16


class ScaledSample:
    """Picture -> "packed", a list of mmsegmentation's samples: a copy for each of the scales.

    With `mirrored` each is followed by its mirror image, which says that it is one, so that
    mmsegmentation turns the prediction back.
    """

    def __init__(self, task: Segmentation) -> None:
        scales = [resized(task, factor) for factor in task.scales]
        self._pipelines = [Compose(validation_pipeline(task, scale)) for scale in scales]
        self._mirrored = task.mirrored

    def __call__(self, item: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        copies: Copies = []
        for pipeline in self._pipelines:
            copies.append(packed_by(pipeline, dict(item)))
            if self._mirrored:
                copies.append(mirror(copies[-1]))
        return {"packed": copies}


def resized(task: Segmentation, factor: float) -> tuple[int, int]:
    """Longest and shortest side of a copy: no limit, and no less than the crop.

    As BEiT's `setr_multi_scale`, which looks at the shortest side alone.
    """
    return UNLIMITED, max(int(factor * min(task.scale)), task.crop)


def mirror(packed: dict[str, Any]) -> dict[str, Any]:
    """A packed sample with its image, but not its mask, mirrored."""
    sample = packed["data_samples"].clone()
    sample.set_metainfo({"flip": True, "flip_direction": "horizontal"})
    return {"inputs": packed["inputs"].flip(-1), "data_samples": sample}


def averaged(segmentor: EncoderDecoder, batch: list[Copies]) -> Iterator[SegDataSample]:
    """Each image's sample with the class of the largest mean probability over its copies.

    As mmsegmentation's SegTTAModel: the mean of the softmax at the size of the image's own mask.
    """
    for copies in batch:
        total: Tensor | float = 0.0
        for packed in copies:
            data = {"inputs": [packed["inputs"]], "data_samples": [packed["data_samples"]]}
            done = segmentor.data_preprocessor(data)
            [found] = segmentor.predict(done["inputs"], done["data_samples"])
            total = total + found.seg_logits.data.softmax(0)
        assert isinstance(total, Tensor)
        sample = copies[0]["data_samples"]
        sample.set_data({"pred_sem_seg": PixelData(data=total.argmax(0, keepdim=True))})
        yield sample
