"""Segmentation at work: mmsegmentation's segmentor under the loop that every stage uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evals.encoders import source
from evals.segmentation import Segmentation
from evals.segmentation_data import (
    IGNORED,
    Pictures,
    TrainingSample,
    ValidationSample,
    open_pictures,
)
from evals.segmentation_mmseg import EncoderDecoder, IoUMetric, PixelData, SegDataSample
from evals.segmentation_model import build_segmentor, norm_layer
from evals.segmentation_pictures import strips
from evals.segmentation_scales import ScaledSample, averaged
from methods.data.stream import Stream, Transform, evaluation_batches, split_batch
from methods.engine.device import Micro
from methods.engine.distributed import all_reduce, setup
from methods.engine.loop import fit
from methods.engine.optim import parameter_groups
from methods.engine.pictures import draw
from methods.engine.work import Layout, Work
from methods.errors import StageError

LOGGED = {
    "decode_loss": "decode.loss_ce",
    "auxiliary_loss": "aux.loss_ce",
    "pixel_accuracy": "decode.acc_seg",
}


def _sample(label: Tensor) -> SegDataSample:
    return SegDataSample(gt_sem_seg=PixelData(data=label.long()))


class SegmentorLoss(nn.Module):
    """A segmentor that takes "inputs" (B,3,c,c), normalised, and "labels" (B,1,c,c)."""

    def __init__(self, segmentor: EncoderDecoder) -> None:
        super().__init__()
        self.segmentor = segmentor

    def forward(self, micro: Micro) -> dict[str, Tensor]:
        """The sum of both heads' losses, each over all pixels, and the parts."""
        losses = self.segmentor.loss(micro["inputs"], [_sample(each) for each in micro["labels"]])
        total, parts = self.segmentor.parse_losses(losses)
        logged = {name: parts[key].detach().mean() for name, key in LOGGED.items()}
        return {"loss": total, **logged}


class Segmenting:
    """What `fit` trains: encoder, neck and heads, with layer decay in the encoder."""

    def __init__(self, module: SegmentorLoss, task: Segmentation) -> None:
        self.module: nn.Module = module
        self._segmentor, self._task = module.segmentor, task

    def groups(self) -> list[dict[str, Any]]:
        """By weight decay and layer; mmseg's own constructor gives a timm encoder one rate."""
        return parameter_groups(self.module, self._task.optimisation, "segmentor.backbone.encoder.")

    def prepare(self, step: int, micros: list[Micro]) -> list[Micro]:
        """mmsegmentation's preprocessor: to RGB, normalise, pad with zeros and 255."""
        preprocess = self._segmentor.data_preprocessor
        prepared = []
        for micro in micros:
            sizes = micro["size"].tolist()
            images, labels = (
                [each[:, :h, :w] for each, (h, w) in zip(micro[name], sizes, strict=True)]
                for name in ("image", "label")
            )
            data = {"inputs": images, "data_samples": [_sample(label) for label in labels]}
            done = preprocess(data, training=True)
            targets = [sample.gt_sem_seg.data for sample in done["data_samples"]]
            prepared.append({"inputs": done["inputs"], "labels": torch.stack(targets)})
        return prepared

    def after_step(self, step: int) -> dict[str, float]:
        """Nothing follows an update."""
        return {}


def check_layout(batch: int, layout: Layout) -> None:
    """StageError "layout" where the heads' BatchNorm would see less than the global batch."""
    pieces = split_batch(batch, layout, unit=1)
    if len(pieces) > 1:
        raise StageError(
            "layout",
            f"segmentation normalises over its batch of {batch}, which {layout.world} device(s) "
            f"cannot hold at once with a device batch of {layout.device_batch}: take more devices",
        )


def build_segmenting(
    task: Segmentation, work: Work, device: torch.device
) -> tuple[Segmenting, EncoderDecoder]:
    """What `fit` trains for `task`, on `device`, and its segmentor."""
    found = source(work, task.encoder, task.seed, task.statistics)
    segmentor = build_segmentor(task, found, norm_layer(work.layout.world, work.layout.device))
    # The preprocessor, which holds the mean, moves to the device with its module.
    module = SegmentorLoss(segmentor).to(device).to(memory_format=memory_format(task, device))
    return Segmenting(module, task), segmentor


def memory_format(task: Segmentation, device: torch.device) -> torch.memory_format:
    """How the heads' convolutions are laid out.

    Channels last saves a seventh of an update of narrow heads on a CPU, and costs wide ones there.
    """
    wide = device.type == "cpu" and task.channels >= 256
    return torch.contiguous_format if wide else torch.channels_last


def run(task: Segmentation, work: Work) -> dict[str, float]:
    """Train, and evaluate the last weights on the validation images."""
    device = setup(work.layout)
    optimisation, layout = task.optimisation, work.layout
    check_layout(optimisation.batch, layout)
    segmenting, segmentor = build_segmenting(task, work, device)
    train = open_pictures(task, work.data, "train")
    views = TrainingSample(train, task.crop)
    stream = partial(Stream, train, views, optimisation.batch, task.seed, layout, unit=1)
    fit(segmenting, optimisation, stream, work, len(train), task.seed)
    validation = open_pictures(task, work.data, "validation")
    metrics = evaluate(segmentor.to(device), validation, layout)
    if task.scales:
        scaled = evaluate(segmentor, validation, layout, ScaledSample(task), averaged)
        metrics["mIoU_multi_scale"] = scaled["mIoU"]
    draw(work, lambda: strips(validation, lambda packed: predictions(segmentor, packed)))
    return metrics


def predictions(segmentor: EncoderDecoder, packed: list[dict[str, Any]]) -> Iterator[SegDataSample]:
    """The samples with their predictions; neighbours of one size go through together."""

    def shapes(each: dict[str, Any]) -> tuple[Any, Any]:
        return each["inputs"].shape, each["data_samples"].ori_shape

    for _, same in groupby(packed, key=shapes):
        group = list(same)
        data = {
            "inputs": [each["inputs"] for each in group],
            "data_samples": [each["data_samples"] for each in group],
        }
        done = segmentor.data_preprocessor(data)
        yield from segmentor.predict(done["inputs"], done["data_samples"])


@torch.no_grad()
def evaluate(
    segmentor: EncoderDecoder,
    pictures: Pictures,
    layout: Layout,
    views: Transform | None = None,
    predict: Callable[..., Iterable[SegDataSample]] = predictions,
) -> dict[str, float]:
    """mIoU, aAcc and mAcc in percent over all ranks' images, by mmsegmentation's IoUMetric.

    `predict` gives the samples, with predictions, of what `views` make of the pictures.
    """
    views = views or ValidationSample(pictures)
    segmentor.eval()
    classes = segmentor.num_classes
    device = next(segmentor.parameters()).device
    areas = torch.zeros(4, classes, dtype=torch.float64, device=device)
    size = layout.device_batch or 16
    for batch in evaluation_batches(pictures, views, size, layout):
        for sample in predict(segmentor, batch["packed"]):
            predicted, wanted = (
                sample.pred_sem_seg.data.squeeze(0),
                sample.gt_sem_seg.data.squeeze(0),
            )
            parts = IoUMetric.intersect_and_union(predicted, wanted.to(predicted), classes, IGNORED)
            areas += torch.stack(parts).to(areas)
    total = all_reduce(areas).cpu()
    found = IoUMetric.total_area_to_metrics(*total, metrics=["mIoU"])
    # A class that occurs in no image has no accuracy, as in mmsegmentation.
    names = {"mIoU": "IoU", "aAcc": "aAcc", "mAcc": "Acc"}
    return {name: 100 * float(np.nanmean(found[key])) for name, key in names.items()}
