"""Nearest neighbours at work: each rank keeps its share of the training features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from evals.frozen import features_of, frozen_features
from evals.knn import NearestNeighbours
from methods.engine.distributed import all_reduce, gather, setup
from methods.engine.work import Work

SIMILARITIES = 2**28
"""Entries of the similarity matrix at a time: 1 GB."""


def run(task: NearestNeighbours, work: Work) -> dict[str, float]:
    """The accuracy of a vote among the nearest training images."""
    device = setup(work.layout)
    extract = frozen_features(task, work, device)
    bank, bank_labels = _collect(task, work, "train", extract, device)
    queries, labels = (gather(part) for part in _collect(task, work, "validation", extract, device))
    classes = len(task.data.classes)
    right = 0
    # The same on all ranks, whose shares of the bank may differ by one image.
    size = max(1, SIMILARITIES // int(all_reduce(torch.tensor(len(bank), device=device), "max")))
    for chunk, wanted in zip(queries.split(size), labels.split(size), strict=True):
        similar, found = nearest(chunk, bank, bank_labels, task.neighbours)
        right += int((vote(similar, found, classes, task.temperature) == wanted).sum())
    return {"top1": 100 * right / len(labels)}


def _collect(
    task: NearestNeighbours,
    work: Work,
    split: Any,
    extract: Callable[[Tensor], Tensor],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Features (n,D) of unit length and labels (n,) of this rank's share of the split."""
    images = task.data.open(work.data, split)
    found, labels, _ = features_of(images, extract, task, work, device)
    return F.normalize(found, dim=-1), labels


def nearest(queries: Tensor, bank: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Similarities and labels (Q,k) of the k = `count` nearest over all ranks' banks (n,D)."""
    near = (queries @ bank.T).topk(min(count, len(bank)), dim=1)
    # The candidates of all ranks, side by side: gather() joins along the first dimension.
    similar = gather(near.values.T.contiguous()).T
    found = gather(labels[near.indices].T.contiguous()).T
    best = similar.topk(min(count, similar.shape[1]), dim=1)
    return best.values, found.gather(1, best.indices)


def vote(similar: Tensor, found: Tensor, classes: int, temperature: float) -> Tensor:
    """The class (Q,) with most votes of weight exp(similarity / temperature)."""
    # Less the largest: the same winner, and no overflow at low temperatures.
    weights = ((similar - similar[:, :1]) / temperature).exp()
    votes = torch.zeros(len(similar), classes, device=similar.device)
    return votes.scatter_add_(1, found, weights).argmax(1)
