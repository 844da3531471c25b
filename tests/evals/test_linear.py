"""The linear probe: global BatchNorm, a grid of rates at once, and held-out training images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_evaluations import BEIT, VIT, linear

from evals.linear_training import EveryNth, GlobalNorm, Heads, Probing
from methods.engine.loop import fit
from methods.engine.work import Layout, Work
from methods.errors import StageError
from methods.parts.augment import EvaluationTransform, LinearAugmentation
from methods.parts.optimisation import Optimisation

Make = Callable[..., Work]
LARS = Optimisation(epochs=1, iterations=6, batch=16, learning_rate=0.5, optimizer="lars")


def samples(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(0, 4, (16,), generator=generator)
    values = torch.randn(16, 8, generator=generator) + 2 * torch.eye(8)[labels]
    return {"image": values, "label": labels, "index": torch.arange(16) + 16 * step}


def trained(work: Work, rates: tuple[float, ...], pieces: int = 1, holdout: int = 5) -> Heads:
    """Six updates on made-up features, each batch cut into `pieces`."""
    heads = Heads(8, 4, len(rates), holdout, seed=0)

    def stream(start: int) -> Any:
        for step in range(start, 6):
            whole = {name: item.chunk(pieces) for name, item in samples(step).items()}
            yield [{name: parts[i] for name, parts in whole.items()} for i in range(pieces)]

    fit(Probing(heads, lambda values: values, rates, 0.0), LARS, stream, work, images=96)
    return heads


def test_global_norm_is_batchnorm() -> None:
    torch.manual_seed(0)
    ours, theirs = GlobalNorm(8), torch.nn.BatchNorm1d(8, affine=False, eps=1e-6)
    for _ in range(3):
        values = torch.randn(12, 8) * 3 + 1
        pieces = ours.over_batch([values[:4], values[4:]])
        torch.testing.assert_close(torch.cat(pieces), theirs(values))
    torch.testing.assert_close(ours.var, theirs.running_var)
    theirs.eval()
    torch.testing.assert_close(ours(values), theirs(values))


def test_accumulation_changes_nothing(work: Make) -> None:
    whole, cut = trained(work("whole"), (1.0, 2.0)), trained(work("cut"), (1.0, 2.0), pieces=4)
    for name, item in whole.state_dict().items():
        torch.testing.assert_close(cut.state_dict()[name], item, rtol=1e-5, atol=1e-6)


def test_a_grid_of_rates_equals_runs_of_one_rate(work: Make) -> None:
    grid = trained(work("grid"), (1.0, 0.5, 4.0))
    for number, rate in enumerate((0.5, 4.0), start=1):
        alone = trained(work(f"alone{number}"), (1.0, rate))
        torch.testing.assert_close(grid.weights[number], alone.weights[1])
        torch.testing.assert_close(grid.biases[number], alone.biases[1])
    assert (grid.weights[1] - grid.weights[2]).abs().max() > 1e-4
    published = trained(work("published"), (1.0,))
    torch.testing.assert_close(grid.weights[0], published.weights[0])


def test_held_out_images_train_the_published_head_only() -> None:
    heads = Heads(8, 4, 2, holdout=4, seed=0)
    micro = {
        "features": torch.randn(2, 8),
        "label": torch.tensor([1, 2]),
        "index": torch.tensor([0, 8]),
    }
    heads(micro)["loss"].backward()
    assert heads.weights[0].grad is not None and heads.weights[0].grad.abs().sum() > 0
    assert heads.weights[1].grad is not None and heads.weights[1].grad.abs().sum() == 0


def test_a_rate_that_diverges_ends_neither_the_stage_nor_the_others(work: Make) -> None:
    heads = Heads(8, 4, 3, holdout=5, seed=0)
    with torch.no_grad():
        heads.weights[2].fill_(float("nan"))
    probing = Probing(heads, lambda values: values, (1.0, 1.0, 1.0), 0.0)
    fit(probing, LARS, lambda start: ([samples(s)] for s in range(6)), work(), images=96)
    expected = trained(work("expected"), (1.0, 1.0))
    torch.testing.assert_close(heads.weights[0], expected.weights[0])
    torch.testing.assert_close(heads.weights[1], expected.weights[1])


def test_views_of_another_size_or_statistics_are_refused(work: Make) -> None:
    for change, message in (
        ({"validation": EvaluationTransform(32, 32)}, "validation.size is 32, .* takes 48"),
        ({"augmentation": LinearAugmentation(48, statistics="clip")}, "augmentation.statistics"),
    ):
        with pytest.raises(StageError, match=message) as caught:
            replace(linear(), **change).run(work())
        assert caught.value.reason == "data"


def test_every_nth() -> None:
    kept = EveryNth(list("abcdefg"), 3)
    assert [kept[i] for i in range(len(kept))] == ["a", "d", "g"]


@pytest.mark.parametrize("encoder", [VIT, BEIT], ids=["ViT", "Beit"])
def test_a_probe_runs_on_pretrained_weights(
    encoder: Any, work: Make, exported: Callable[..., Path]
) -> None:
    metrics = linear(encoder).run(work(needs={"encoder": exported(encoder)}))
    assert metrics.keys() == {"top1", "top5", "top1_best_rate", "best_rate"}
    assert 0 <= metrics["top1"] <= metrics["top5"] <= 100
    assert metrics["best_rate"] in (0.25, 0.5, 1.0, 2.0, 4.0)


def test_layout_changes_no_number_and_the_seed_does(work: Make) -> None:
    task = linear(pooling="mean", layer=2)
    whole = task.run(work("whole"))
    cut = task.run(work("cut", layout=Layout(device_batch=4)))
    assert whole == pytest.approx(cut)
    losses = [(work(name).folder / "metrics.jsonl").read_text() for name in ("whole",)]
    replace(task, seed=1).run(work("seed"))
    assert (work("seed").folder / "metrics.jsonl").read_text() not in losses


def test_a_probe_that_was_stopped_ends_like_one_that_was_not(work: Make) -> None:
    task = linear()
    whole = task.run(work("whole"))
    asked = iter([None, "preempted"])
    with pytest.raises(StageError, match="preempted"):
        task.run(work("stopped", stop=lambda: next(asked)))
    assert task.run(work("stopped")) == whole
