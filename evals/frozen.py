"""Features of a frozen encoder: what the linear probe and the nearest neighbours read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from evals.accuracy import evaluation_batch
from evals.encoders import Timm, build_frozen, check_views, features, source
from methods.data.augment import ToSample
from methods.data.mixing import normalise, to_float
from methods.data.stream import evaluation_batches
from methods.engine.work import Work


class Features(nn.Module):
    """A frozen encoder with the pooling, layer and statistics of a task that reads features."""

    def __init__(self, encoder: Timm, task: Any) -> None:
        super().__init__()
        self.encoder, self._task = encoder, task
        self.width = int(encoder.num_features)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images uint8 (B,3,H,W) to features float32 (B,D)."""
        pixels = normalise(to_float(images), self._task.validation.statistics)
        return features(self.encoder, pixels, self._task.pooling, self._task.layer)


def frozen_features(task: Any, work: Work, device: torch.device) -> Features:
    """The features that a task with pooling, layer, milestone and statistics reads."""
    found = source(work, task.encoder, task.seed, task.validation.statistics, task.milestone)
    check_views(found, task)
    return Features(build_frozen(found, device), task)


def features_of(
    images: Any, extract: Callable[[Tensor], Tensor], task: Any, work: Work, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Features (n,D), labels (n,) and places (n,) of this rank's share of `images`.

    Each is seen as in the task's validation.
    """
    views = ToSample(task.validation.build())
    size = evaluation_batch(work.layout.device_batch)
    found, labels, places = [], [], []
    for batch in evaluation_batches(images, views, size, work.layout):
        found.append(extract(batch["image"].to(device)))
        labels.append(batch["label"].to(device))
        places.append(batch["index"].to(device))
    return torch.cat(found), torch.cat(labels), torch.cat(places)
