"""Nearest neighbours: against a count by hand, and a run."""

from __future__ import annotations

from collections.abc import Callable
from math import exp

import torch
from tiny_evaluations import BEIT, VIT, knn

from evals.knn_voting import nearest, vote
from methods.engine.work import Layout, Work


def test_nearest_and_vote_by_hand() -> None:
    bank = torch.eye(3)
    labels = torch.tensor([0, 1, 1])
    queries = torch.tensor([[0.9, 0.3, 0.2], [0.1, 0.2, 0.9]])
    similar, found = nearest(queries, bank, labels, 2)
    assert found.tolist() == [[0, 1], [1, 1]]
    assert vote(similar, found, 2, 0.07).tolist() == [0, 1]


def test_many_far_neighbours_outvote_a_near_one_at_a_high_temperature() -> None:
    similar, found = torch.tensor([[0.9, 0.5, 0.5]]), torch.tensor([[0, 1, 1]])
    assert exp(0.9 / 0.07) > 2 * exp(0.5 / 0.07)
    assert vote(similar, found, 2, 0.07).tolist() == [0]
    assert exp(0.9 / 10) < 2 * exp(0.5 / 10)
    assert vote(similar, found, 2, 10.0).tolist() == [1]


def test_more_neighbours_than_images_is_all_of_them() -> None:
    similar, _ = nearest(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), 20)
    assert similar.shape == (2, 2)


def test_a_run_and_its_layout(work: Callable[..., Work]) -> None:
    for encoder in (VIT, BEIT):
        metrics = knn(encoder, pooling="mean").run(work())
        assert metrics.keys() == {"top1"} and 0 <= metrics["top1"] <= 100
        assert metrics == knn(encoder, pooling="mean").run(work(layout=Layout(device_batch=7)))
