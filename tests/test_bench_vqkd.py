"""The bench of VQ-KD's training: our step and the official one compute the same."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from harness.bench.peer_vqkd import official_loss, sequence_first, targets
from harness.bench.rows import Setting, row
from harness.bench.subject import Subject, subjects
from harness.study import load_scale
from methods.data.mixing import to_float


def subject(precision: str = "fp32") -> Subject:
    torch.set_num_threads(1)
    (found,) = subjects(["vqkd"], load_scale("tiny"), precision, 4)
    return found


def test_losses_gradients_and_codebook_are_the_official_ones() -> None:
    ours = subject()
    trainable: Any = ours.build()
    with torch.no_grad():
        (micro,) = trainable.prepare(0, [ours.sample(4)])
    official = copy.deepcopy(trainable.network).train()
    for step in range(2):
        found = trainable.module.train()(micro)["loss"]
        theirs = official_loss(official, micro["image"], micro["target"])
        torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-6)
        found.backward()
        theirs.backward()
        trainable.after_step(step)
    wanted = dict(official.named_parameters())
    for name, item in trainable.network.named_parameters():
        if item.grad is not None:
            torch.testing.assert_close(item.grad, wanted[name].grad, rtol=1e-3, atol=1e-6)
    for name, item in trainable.network.quantize.named_buffers():
        if name not in ("sums", "counts"):
            torch.testing.assert_close(item, official.quantize.get_buffer(name))


def test_the_teachers_targets_are_ours() -> None:
    trainable: Any = subject().build()
    images = to_float(subject().sample(2)["image"])
    visual = copy.deepcopy(trainable.teacher.visual)  # with QuickGELU folded into its weights
    expected = trainable.teacher(images, "own").projected[:, 1:]
    found = targets(sequence_first(visual), images)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_row_beside_it(precision: str) -> None:
    setting = Setting("cpu", batch=4, steps=2, peer="official", threads=1, busy=True)
    found = row(subject(precision), setting)
    peer = found["peer"]
    assert (peer["name"], peer["precision"]) == ("official", precision)
    assert peer["ratio"] > 0 and peer["gflop_per_image"] > 0
