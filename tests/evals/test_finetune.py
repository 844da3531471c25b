"""Fine-tuning: layer decay, the head's scale, and a run of each family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_evaluations import BEIT, VIT, finetune

from evals.finetune_training import Tuning, build_classifier
from methods.engine.work import Layout, Work
from methods.errors import StageError

Make = Callable[..., Work]


def scale_of(groups: list[dict[str, Any]], item: torch.Tensor) -> tuple[float, float]:
    """Learning-rate scale and weight decay of a parameter."""
    [group] = [each for each in groups if any(own is item for own in each["params"])]
    return group["lr_scale"], group["weight_decay"]


@pytest.mark.parametrize("encoder", [VIT, BEIT], ids=["ViT", "Beit"])
def test_rates_decay_from_head_to_patches(encoder: Any, work: Make) -> None:
    task = finetune(encoder)
    module = build_classifier(task, work())
    groups = Tuning(module, task).groups()
    model = module.encoder
    assert scale_of(groups, model.head.weight) == (1.0, 0.05)
    assert scale_of(groups, model.fc_norm.weight) == (1.0, 0.0)
    for block, power in ((3, 1), (0, 4)):
        weight = model.blocks[block].attn.proj.weight
        assert scale_of(groups, weight) == (pytest.approx(0.65**power), 0.05)
    assert scale_of(groups, model.patch_embed.proj.weight)[0] == pytest.approx(0.65**5)
    if encoder is BEIT:
        table = model.blocks[0].attn.relative_position_bias_table
        assert scale_of(groups, table)[0] == pytest.approx(0.65**4)
    count = sum(len(group["params"]) for group in groups)
    assert count == len(list(module.parameters()))


def test_the_head_starts_small(work: Make) -> None:
    small = build_classifier(finetune(head_scale=0.001), work()).encoder.head
    large = build_classifier(finetune(head_scale=1.0), work()).encoder.head
    torch.testing.assert_close(large.weight * 0.001, small.weight)
    assert float(large.weight.detach().std()) == pytest.approx(0.02, rel=0.2)
    assert float(small.bias.detach().abs().sum()) == 0


@pytest.mark.parametrize("encoder", [VIT, BEIT], ids=["ViT", "Beit"])
def test_fine_tuning_runs_on_pretrained_weights(
    encoder: Any, work: Make, exported: Callable[..., Path]
) -> None:
    metrics = finetune(encoder).run(work(needs={"encoder": exported(encoder)}))
    assert metrics.keys() == {"top1", "top5"}
    assert 0 <= metrics["top1"] <= metrics["top5"] <= 100


def test_accumulation_changes_no_loss(work: Make) -> None:
    task = finetune(drop_path=0.0)
    task.run(work("whole"))
    task.run(work("cut", layout=Layout(device_batch=4)))
    losses = [_losses(work(name)) for name in ("whole", "cut")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_fine_tuning_that_was_stopped_ends_like_one_that_was_not(work: Make) -> None:
    task = finetune()
    whole = task.run(work("whole"))
    asked = iter([None, "preempted"])
    with pytest.raises(StageError, match="preempted"):
        task.run(work("stopped", stop=lambda: next(asked)))
    assert task.run(work("stopped")) == whole
    assert _losses(work("stopped")) == _losses(work("whole"))


def _losses(work: Work) -> list[float]:
    import json

    return [json.loads(line)["loss"] for line in work.metrics.read_text().splitlines()]
