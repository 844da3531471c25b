"""How a stage is optimised: batch, learning-rate schedule, optimiser and precision, as a value."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal

Schedule = Literal["cosine", "poly", "step", "constant"]
Warmup = Literal["fraction", "table", "product"]


@dataclass(frozen=True)
class Optimisation:
    """Everything that decides the sequence of updates; the defaults are what most recipes share.

    The rate is set per update. Three families of code warm up in three ways (`warmup`):

    - "fraction" (MAE, MILAN, CMAE: `util/lr_sched.py`; SimMIM): with e = step / steps per epoch,
      linear from `warmup_start` to the peak while e < warmup_epochs, the peak reached at
      e = warmup_epochs, the schedule over the rest.
    - "table" (BEiT, BEiT v2, VQ-KD, CAE: `utils.cosine_scheduler`; mmengine's LinearLR followed by
      PolyLR): `linspace(start, peak, W)`, ends included, so update W-1 has the peak already.
    - "product" (mmcv 1.x under the BEiT segmentation configs): the schedule runs from update 0 and
      is multiplied by a ramp during the first W updates.

    An epoch is `images // batch` updates, as with `drop_last`; where the set is smaller than one
    batch it is the fraction `images / batch`.

    epochs, warmup_epochs, decay_epochs: in epochs; `iterations` and `warmup_iterations`, in
        updates, go before them.
    batch: images per update over all devices and accumulation steps.
    learning_rate: the peak; per `per` images of the batch if that is set (MAE 256, SimMIM 512).
    minimum_rate: absolute, where cosine and poly end.
    warmup_start: the first rate, as a fraction of the peak.
    decay_epochs, decay_factor: the milestones of "step". power: of "poly".
    clip: largest global norm of the gradient. trust: LARS's coefficient.
    layer_decay: d of the scales d^(L+1-i), see `methods.engine.optim`.
    undecayed: names exempt from weight decay besides biases and 1-D parameters (BEiT: "cls_token",
        "pos_embed"; MAE: none).
    """

    epochs: float
    batch: int
    learning_rate: float
    per: int | None = None
    warmup_epochs: float = 0.0
    minimum_rate: float = 0.0
    schedule: Schedule = "cosine"
    warmup: Warmup = "fraction"
    warmup_start: float = 0.0
    iterations: int | None = None
    warmup_iterations: int | None = None
    decay_epochs: tuple[float, ...] = ()
    decay_factor: float = 0.1
    power: float = 1.0
    optimizer: Literal["adamw", "lars", "sgd"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.9
    trust: float = 0.001
    weight_decay: float = 0.05
    undecayed: tuple[str, ...] = ()
    layer_decay: float | None = None
    clip: float | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"

    def __post_init__(self) -> None:
        for problem, wrong in self._problems().items():
            if wrong:
                raise ValueError(problem)

    def _problems(self) -> dict[str, bool]:
        fractions = (self.momentum, *self.betas)
        return {
            f"batch must be at least 1, not {self.batch}": self.batch < 1,
            f"epochs must be positive, not {self.epochs}": not self.epochs > 0,
            f"iterations must be positive, not {self.iterations}": (self.iterations or 1) < 1,
            f"per must be positive, not {self.per}": self.per is not None and self.per < 1,
            f"learning_rate must be positive, not {self.learning_rate}": not self.learning_rate > 0,
            f"minimum_rate must not be negative: {self.minimum_rate}": self.minimum_rate < 0,
            f"warmup_epochs must not be negative: {self.warmup_epochs}": self.warmup_epochs < 0,
            f"warmup_iterations must not be negative: {self.warmup_iterations}": (
                (self.warmup_iterations or 0) < 0
            ),
            f"warmup_start must be in [0, 1], not {self.warmup_start}": (
                not 0 <= self.warmup_start <= 1
            ),
            "warm-up must be shorter than the training": self._warms_up_too_long(),
            f"decay_epochs must rise: {self.decay_epochs}": (
                list(self.decay_epochs) != sorted(set(self.decay_epochs))
            ),
            "decay_epochs belong to the schedule 'step', which needs at least one": (
                bool(self.decay_epochs) != (self.schedule == "step")
            ),
            f"decay_factor must be in (0, 1], not {self.decay_factor}": (
                not 0 < self.decay_factor <= 1
            ),
            f"power must be positive, not {self.power}": not self.power > 0,
            f"betas and momentum must be in [0, 1): {fractions}": (
                not all(0 <= item < 1 for item in fractions)
            ),
            f"eps must be positive, not {self.eps}": not self.eps > 0,
            f"trust must be positive, not {self.trust}": not self.trust > 0,
            f"weight_decay must not be negative: {self.weight_decay}": self.weight_decay < 0,
            f"layer_decay must be in (0, 1], not {self.layer_decay}": (
                self.layer_decay is not None and not 0 < self.layer_decay <= 1
            ),
            f"clip must be positive, not {self.clip}": self.clip is not None and not self.clip > 0,
        }

    def _warms_up_too_long(self) -> bool:
        if self.iterations is not None:
            return (self.warmup_iterations or 0) > self.iterations
        return self.warmup_epochs > self.epochs

    @property
    def peak(self) -> float:
        """The learning rate at the end of the warm-up."""
        return self.learning_rate * (self.batch / self.per if self.per else 1.0)

    def steps_per_epoch(self, images: int) -> float:
        """Updates in one epoch of a set of `images`."""
        if images < 1:
            raise ValueError("the training set is empty")
        return float(images // self.batch) if images >= self.batch else images / self.batch

    def steps(self, images: int) -> int:
        """Updates of the whole training on a set of `images`."""
        if self.iterations is not None:
            return self.iterations
        return max(1, round(self.epochs * self.steps_per_epoch(images)))

    def warmup_steps(self, images: int) -> float:
        """Length of the warm-up in updates; whole except with "fraction"."""
        if self.warmup_iterations is not None:
            return float(self.warmup_iterations)
        if self.iterations is not None and self.warmup_epochs == 0:
            return 0.0
        steps = self.warmup_epochs * self.steps_per_epoch(images)
        return steps if self.warmup == "fraction" else float(int(steps))

    def rate(self, step: int, images: int) -> float:
        """The learning rate of update `step` (from 0) when training on a set of `images`."""
        ramp = self.warmup_steps(images)
        if self.warmup == "product":
            factor = 1 - (1 - step / ramp) * (1 - self.warmup_start) if step < ramp else 1.0
            return factor * self._scheduled(step, self.steps(images), images)
        if step < ramp:
            last = ramp if self.warmup == "fraction" else ramp - 1
            done = step / last if last > 0 else 0.0
            return self.peak * (self.warmup_start + (1 - self.warmup_start) * done)
        return self._scheduled(step - ramp, self.steps(images) - ramp, images, ramp)

    def _scheduled(self, step: float, length: float, images: int, before: float = 0.0) -> float:
        """The rate `step` updates into a schedule of `length`, which began `before` updates in."""
        if self.schedule == "constant":
            return self.peak
        if self.schedule == "step":
            epoch = (before + step) / self.steps_per_epoch(images)
            return self.peak * self.decay_factor ** bisect_right(self.decay_epochs, epoch)
        if self.schedule == "poly" and self.warmup == "table":
            length -= 1  # mmengine ends at the minimum: its last update has it
        done = min(1.0, step / length) if length > 0 else 1.0
        left = (1 + math.cos(math.pi * done)) / 2 if self.schedule == "cosine" else 1 - done
        left = left**self.power if self.schedule == "poly" else left
        return self.minimum_rate + (self.peak - self.minimum_rate) * left
