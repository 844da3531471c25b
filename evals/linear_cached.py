"""The linear probe on fixed views: every image's features are computed once and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from evals.frozen import features_of
from evals.linear import LinearProbe
from methods.data.stream import positions, split_batch
from methods.engine.device import autocast
from methods.engine.distributed import gather
from methods.engine.work import Layout, Work

NOTICE = (
    "linear.views is 'fixed': the heads saw one fixed view of each image, a protocol of its own "
    "beside which the papers' numbers, with random crops and flips, do not belong"
)


def cached_features(
    task: LinearProbe,
    work: Work,
    images: Any,
    extract: Callable[[Tensor], Tensor],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Features float32 (n,D) and labels int64 (n,) of all images, in their order, on every rank.

    Each is seen as in validation. They take 4 n D bytes of the device's memory: 3.9 GB for ImageNet
    and ViT-B. A stage that resumes computes them again.
    """
    with torch.no_grad(), autocast(device, task.optimisation.precision):
        features, labels, places = features_of(images, extract, task, work, device)
    order = gather(places).argsort()
    return gather(features)[order], gather(labels)[order]


class CachedStream:
    """The micro-batches of `methods.data.stream.Stream`, of features instead of images."""

    def __init__(
        self, features: Tensor, labels: Tensor, batch: int, seed: int, layout: Layout, start: int
    ) -> None:
        self._features, self._labels = features, labels
        self._batch, self._seed, self._layout, self._start = batch, seed, layout, start
        self._sizes = split_batch(batch, layout, unit=1)

    def __iter__(self) -> Iterator[list[dict[str, Tensor]]]:
        """One list of micro-batches for each step: "image" holds the features (b,D)."""
        step, length = self._start, len(self._labels)
        while True:
            place, micros = step * self._batch + self._layout.rank * sum(self._sizes), []
            for size in self._sizes:
                keys = positions(place, place + size, length, self._seed)
                index = torch.tensor([key[1] for key in keys], device=self._labels.device)
                features, labels = self._features[index], self._labels[index]
                micros.append({"image": features, "label": labels, "index": index})
                place += size
            yield micros
            step += 1
