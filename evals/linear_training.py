"""The linear probe at work: frozen features, normalised by the global batch; a head a rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evals.accuracy import accuracies, evaluation_batch
from evals.frozen import Features, frozen_features
from evals.linear import LinearProbe
from evals.linear_cached import NOTICE, CachedStream, cached_features
from methods.data.augment import ToSample
from methods.data.stream import Stream, evaluation_batches
from methods.engine.device import Micro, autocast
from methods.engine.distributed import all_reduce, setup
from methods.engine.loop import fit
from methods.engine.work import Work

Frozen = Callable[[Tensor], Tensor]
"""Images uint8 (B,3,H,W) to features float32 (B,D)."""

PUBLISHED = 0  # the head with the published rate; the grid's heads follow


class GlobalNorm(nn.Module):
    """BatchNorm1d without affine, eps 1e-6, over the batch of all ranks and accumulation steps.

    The features have no gradient, so sums of them are all that the ranks need to exchange.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, width: int, eps: float = 1e-6, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("var", torch.ones(width))

    @torch.no_grad()
    def over_batch(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """This rank's parts (b,D) of the batch, normalised; the running statistics move on."""
        # In double precision the order of summation, and so the layout, leaves no trace.
        here = torch.cat(list(parts)).double()
        total = all_reduce(torch.cat([here.sum(0), here.new_tensor([len(here)])]))
        count = total[-1]
        mean = total[:-1] / count
        square = all_reduce((here - mean).square().sum(0))
        self.mean.lerp_(mean.to(self.mean), self.momentum)
        # As in BatchNorm, the running variance is the unbiased one and the batch's is not.
        self.var.lerp_((square / (count - 1).clamp(min=1)).to(self.var), self.momentum)
        return [self._scaled(part, mean, square / count) for part in parts]

    def forward(self, values: Tensor) -> Tensor:
        """(B,D) normalised with the running statistics, as in evaluation."""
        return self._scaled(values, self.mean, self.var)

    def _scaled(self, values: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        scale = (var + self.eps).rsqrt()
        return (values - mean.to(values)) * scale.to(values)


class Heads(nn.Module):
    """One linear head a rate on the same features; each is its own problem with its own LARS."""

    def __init__(self, width: int, classes: int, count: int, holdout: int, seed: int) -> None:
        super().__init__()
        weight = torch.empty(classes, width)
        nn.init.trunc_normal_(weight, std=0.01, generator=torch.Generator().manual_seed(seed))
        self.norm = GlobalNorm(width)
        self.weights = nn.ParameterList([weight.clone() for _ in range(count)])
        self.biases = nn.ParameterList([torch.zeros(classes) for _ in range(count)])
        self.classes, self.holdout = classes, holdout

    def logits(self, normalised: Tensor) -> Tensor:
        """Features (B,D) to (B,heads,classes), as one matrix product."""
        scores = F.linear(normalised, torch.cat(list(self.weights)), torch.cat(list(self.biases)))
        return scores.view(len(normalised), -1, self.classes)

    def forward(self, micro: Micro) -> dict[str, Tensor]:
        """ "loss" has the value of the published rate's loss and the gradient of every head's."""
        scores, labels = self.logits(micro["features"]), micro["label"]
        each = F.cross_entropy(
            scores.transpose(1, 2), labels.view(-1, 1).expand(-1, scores.shape[1]), reduction="none"
        )
        published, grid = each[:, PUBLISHED].mean(), each[:, PUBLISHED + 1 :]
        trained = (micro["index"] % self.holdout != 0).view(-1, 1)
        # A mean over all images, so that it does not depend on where the held-out ones fall.
        losses = torch.where(trained, grid, 0.0).mean(0) * (self.holdout / (self.holdout - 1))
        # A rate that diverges must end neither the others nor the stage.
        others = torch.where(losses.isfinite(), losses, 0.0).sum()
        right = (scores[:, PUBLISHED].argmax(-1) == labels).float().mean()
        return {"loss": published + others - others.detach(), "train_top1": 100 * right.detach()}


class Probing:
    """What `fit` trains: the heads, on features that `prepare` takes from the frozen encoder."""

    def __init__(self, heads: Heads, frozen: Frozen, rates: Sequence[float], decay: float) -> None:
        self.module: nn.Module = heads
        self.frozen: dict[str, Frozen] = {"encoder": frozen}
        self._heads, self._rates, self._decay = heads, rates, decay

    def groups(self) -> list[dict[str, Any]]:
        """A group for each head's weight and bias, at its rate."""
        heads = zip(self._rates, self._heads.weights, self._heads.biases, strict=True)
        return [
            {"params": [item], "weight_decay": decay, "lr_scale": rate}
            for rate, weight, bias in heads
            for item, decay in ((weight, self._decay), (bias, 0.0))
        ]

    def prepare(self, step: int, micros: list[Micro]) -> list[Micro]:
        """Adds "features" (b,D): normalised by the statistics of the global batch."""
        extract = self.frozen["encoder"]
        parts = self._heads.norm.over_batch([extract(micro["image"]) for micro in micros])
        return [
            {"features": part, "label": micro["label"], "index": micro["index"]}
            for micro, part in zip(micros, parts, strict=True)
        ]

    def after_step(self, step: int) -> dict[str, float]:
        """A rate of the grid that diverged starts again from zero instead of ending the stage."""
        with torch.no_grad():
            for item in (
                *self._heads.weights[PUBLISHED + 1 :],
                *self._heads.biases[PUBLISHED + 1 :],
            ):
                item.nan_to_num_(0.0, 0.0, 0.0)
        return {}


class EveryNth:
    """The images 0, n, 2n, ... of a source; sorted by class, so that each class has its share."""

    def __init__(self, whole: Any, n: int) -> None:
        self._whole, self._n = whole, n

    def __len__(self) -> int:
        return -(-len(self._whole) // self._n)

    def __getitem__(self, index: int) -> Any:
        return self._whole[index * self._n]


def build_probing(task: LinearProbe, extract: Features) -> tuple[Probing, Heads]:
    """What `fit` trains for `task`, and its heads: the published rate's, then those of `rates`."""
    factors = (1.0, *task.rates)
    heads = Heads(extract.width, len(task.data.classes), len(factors), task.holdout, task.seed)
    return Probing(heads, extract, factors, task.optimisation.weight_decay), heads


def run(task: LinearProbe, work: Work) -> dict[str, float]:
    """Train the heads, choose the best of the grid on held-out training images, and evaluate."""
    device = setup(work.layout)
    extract = frozen_features(task, work, device)
    train = task.data.open(work.data, "train")
    probing, heads = build_probing(task, extract)
    optimisation, batch, seed = task.optimisation, task.optimisation.batch, task.seed
    stream: Callable[[int], Iterable[list[Micro]]]
    if task.views == "fixed":
        work.alarm(NOTICE)
        known = cached_features(task, work, train, extract, device)
        stream = partial(CachedStream, *known, batch, seed, work.layout)
        probing.frozen = {"encoder": nn.Identity()}
    else:
        views = ToSample(task.augmentation.build())
        stream = partial(Stream, train, views, batch, seed, work.layout, unit=1)
    fit(probing, optimisation, stream, work, len(train), seed)
    heads.to(device).eval()
    return _evaluate(task, work, heads, extract, train, device)


def _evaluate(
    task: LinearProbe, work: Work, heads: Heads, extract: Frozen, train: Any, device: torch.device
) -> dict[str, float]:
    views = ToSample(task.validation.build())

    def score(images: Any) -> Tensor:
        size = evaluation_batch(work.layout.device_batch)
        batches = evaluation_batches(images, views, size, work.layout)
        with autocast(device, task.optimisation.precision):
            return accuracies(batches, lambda x: heads.logits(heads.norm(extract(x))), device)

    final = score(task.data.open(work.data, "validation"))
    metrics = {"top1": float(final[0, PUBLISHED]), "top5": float(final[1, PUBLISHED])}
    if task.rates:
        best = int(score(EveryNth(train, task.holdout))[0, PUBLISHED + 1 :].argmax())
        metrics["top1_best_rate"] = float(final[0, PUBLISHED + 1 + best])
        metrics["best_rate"] = task.optimisation.learning_rate * task.rates[best]
    return metrics
