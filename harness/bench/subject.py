"""What is measured: a method's pretraining, or VQ-KD's, on random images and untrained teachers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import methods
from harness.plan import make_plan
from harness.stage import Stage
from harness.study import Scale, Study
from methods.engine.loop import Trainable
from methods.errors import InputError
from methods.networks.pretrainer import MaskedModelling
from methods.parts.model import Method
from methods.parts.optimisation import Optimisation
from methods.teachers.untrained import untrained
from methods.teachers.vqkd import VqkdTraining
from methods.values import did_you_mean

TOKENIZER = "vqkd"
"""The stage besides the methods that can be measured: training VQ-KD."""


@dataclass(frozen=True)
class Subject:
    """Something whose steps can be measured.

    build: the trainable, drawn from torch's global generator. sample: a micro-batch of so many
    random images, as the loader makes it. optimisation: with the bench's batch and precision.
    images: that one training at this scale sees (epochs times the training set), for projections.
    encoder: its name in tables.
    """

    name: str
    build: Callable[[], Trainable]
    sample: Callable[[int], dict[str, torch.Tensor]]
    optimisation: Optimisation
    images: float
    encoder: str

    def with_batch(self, batch: int) -> Subject:
        """The same with another batch."""
        return dataclasses.replace(self, optimisation=shortened(self.optimisation, batch, None))


def subjects(
    names: Sequence[str], scale: Scale, precision: str | None, batch: int
) -> Iterator[Subject]:
    """The subjects `names`: methods, or "vqkd"; InputError for others.

    precision None keeps each recipe's own, but bf16 for fp16 on a CPU, which has no fp16 products.
    """
    known = [*methods.names(), TOKENIZER]
    for name in names:
        if name not in known:
            raise InputError(f"--methods: nothing is called {name!r}{did_you_mean(name, known)}")
    for name in names:
        plan = make_plan(
            Study("bench", methods=(_needing(name),), scale=scale.name, evals=("linear",)), scale
        )
        stage = plan.rows[0].stages["pretrain"]
        if name == TOKENIZER:
            yield _tokenizer(stage.needs[TOKENIZER], batch, precision)
        else:
            yield _method(stage, batch, precision)


def _needing(name: str) -> str:
    return "beitv2" if name == TOKENIZER else name


def _method(stage: Stage, batch: int, precision: str | None) -> Subject:
    task: Any = stage.task
    method: Method = task.method
    optimisation = shortened(method.optimisation, batch, precision)
    method = dataclasses.replace(method, optimisation=optimisation)

    def build() -> Trainable:
        frozen = {
            role: untrained(need.task, _projected(need)) for role, need in stage.needs.items()
        }
        return MaskedModelling(method, frozen)

    def sample(size: int) -> dict[str, torch.Tensor]:
        generator = np.random.default_rng(0)
        grid = method.encoder.grid
        draws = [method.masking.draw(generator, grid) for _ in range(size)]
        micro = {"image": noise(size, method.augmentation.size)}
        second = second_size(method)
        if second:
            micro["second"] = noise(size, second)
        return {**micro, "draw": torch.from_numpy(np.stack(draws))}

    images = task.method.optimisation.epochs * training_images(task.data)
    return Subject(method.name, build, sample, optimisation, images, method.encoder.describe())


def _projected(stage: Stage) -> int:
    """Channels of the teacher that a tokenizer learns from, where it has one."""
    teacher = next(iter(stage.needs.values()), None)
    return int(getattr(teacher.task, "widths", {}).get("projected", 512)) if teacher else 512


def _tokenizer(stage: Stage, batch: int, precision: str | None) -> Subject:
    from methods.teachers.vqkd_training import VqkdTrainable

    task = stage.task
    if not isinstance(task, VqkdTraining):
        raise InputError(f"--methods: this scale does not train {TOKENIZER}")
    optimisation = shortened(task.optimisation, batch, precision)
    short = dataclasses.replace(task, optimisation=optimisation)

    def build() -> Trainable:
        teacher: Any = untrained(stage.needs[task.teacher].task)
        return VqkdTrainable(short, teacher, ENDLESS * batch)

    def sample(size: int) -> dict[str, torch.Tensor]:
        return {"image": noise(size, task.image)}

    images = task.optimisation.epochs * training_images(task.data)
    name = f"{task.depth}x{task.width}/{task.patch}"
    return Subject(TOKENIZER, build, sample, optimisation, images, name)


ENDLESS = 1000
"""Updates of a schedule that is never finished."""


def shortened(optimisation: Optimisation, batch: int, precision: str | None) -> Optimisation:
    """The recipe's optimiser at another batch, under a schedule that asks for nothing special."""
    own = optimisation.precision
    changes: dict[str, Any] = {
        "epochs": 1.0,
        "batch": batch,
        "warmup_epochs": 0.0,
        "schedule": "constant",
        "decay_epochs": (),
        "precision": precision or ("bf16" if own == "fp16" else own),
    }
    return dataclasses.replace(optimisation, **changes)


def noise(size: int, side: int) -> torch.Tensor:
    """Random pictures, uint8 (size, 3, side, side)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (size, 3, side, side), generator=generator, dtype=torch.uint8)


def second_size(method: Method) -> int:
    """Pixels of a side of the second view, 0 where there is none."""
    from PIL import Image

    views = method.augmentation.build()
    picture = Image.new("RGB", (method.augmentation.size * 2,) * 2)
    second = views(picture, np.random.default_rng(0)).get("second")
    return 0 if second is None else int(second.shape[-1])


def training_images(data: Any) -> int:
    """Images of the training split as published or as the scale makes it; 0 where unknown."""
    if type(data).__name__ == "ImageNet":
        return 1_281_167
    return int(getattr(data, "train", 0))
