"""Evaluations as subjects of the bench: a training step of each, on an untrained encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from harness.bench.subject import Subject, noise, shortened, training_images
from harness.plan import make_plan
from harness.study import Scale, Study
from methods.engine.loop import Trainable
from methods.engine.work import Work
from methods.errors import InputError
from methods.values import did_you_mean

EVALUATIONS: tuple[Literal["linear", "finetune", "segmentation"], ...] = (
    "linear",
    "finetune",
    "segmentation",
)
NO_FILES = Work(Path())
"""An evaluation without a pretrained encoder initialises its own."""
RATES = tuple(2.0 ** (power / 2) for power in range(-4, 5))
"""Factors of the linear probe's published rate: with that one, ten heads."""


@dataclass(frozen=True)
class EvaluationSubject(Subject):
    """An evaluation's training step; `task`: its value, with the bench's batch and precision."""

    task: Any = None


def evaluation_subjects(
    names: Sequence[str], scale: Scale, precision: str | None, batch: int
) -> Iterator[EvaluationSubject]:
    """The subjects `names` of EVALUATIONS, as MAE's encoder at this scale; InputError for others.

    The linear probe has ten learning rates, the published one and RATES.
    """
    for name in names:
        if name not in EVALUATIONS:
            raise InputError(f"--evals: no step of {name!r}{did_you_mean(name, EVALUATIONS)}")
    study = Study("bench", methods=("mae",), scale=scale.name, evals=EVALUATIONS)
    stages = make_plan(study, scale).rows[0].stages
    for name in names:
        task: Any = stages[name].task
        images = task.optimisation.epochs * training_images(task.data)
        changes: dict[str, Any] = {"rates": RATES} if name == "linear" else {}
        optimisation = shortened(task.optimisation, batch, precision)
        task = dataclasses.replace(task, optimisation=optimisation, **changes)
        made: Any = BUILDERS[name], SAMPLES[name]
        yield EvaluationSubject(name, *_of(task, *made), optimisation, images, _name(task), task)


def uncounted(subject: Subject) -> dict[str, Any]:
    """What a row does not know: a few images' features take less memory than the probe's heads."""
    if subject.name != "linear":
        return {}
    return {"peak_bytes": None, "largest_batch": {"batch": None, "how": "not counted"}}


def _of(
    task: Any, build: Callable[[Any], Trainable], sample: Callable[[Any, int], dict[str, Tensor]]
) -> tuple[Callable[[], Trainable], Callable[[int], dict[str, Tensor]]]:
    return lambda: build(task), lambda size: sample(task, size)


def _name(task: Any) -> str:
    return str(task.encoder.describe())


def linear(task: Any) -> Trainable:
    """The heads of every rate on one pass of the frozen encoder."""
    from evals.frozen import frozen_features
    from evals.linear_training import build_probing

    return build_probing(task, frozen_features(task, NO_FILES, torch.device("cpu")))[0]


def finetune(task: Any) -> Trainable:
    """The whole encoder with a fresh head."""
    from evals.finetune_training import Tuning, build_classifier

    return Tuning(build_classifier(task, NO_FILES), task)


def segmentation(task: Any) -> Trainable:
    """The encoder with UPerNet."""
    from evals.segmentation_training import build_segmenting

    return build_segmenting(task, NO_FILES, torch.device("cpu"))[0]


def labelled(task: Any, size: int) -> dict[str, Tensor]:
    """Random pictures (B,3,H,W) with labels (B,) and places in the set (B,)."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, len(task.data.classes), (size,), generator=generator)
    image = noise(size, task.augmentation.size)
    return {"image": image, "label": labels, "index": 1 + torch.arange(size)}


def erasable(task: Any, size: int) -> dict[str, Tensor]:
    """The same with what random erasing takes."""
    from methods.data.augment import draw_erasing

    generator, augmentation = np.random.default_rng(0), task.augmentation
    micro = labelled(task, size)
    if augmentation.erasing:
        draws = (draw_erasing(augmentation.erasing, augmentation.size, generator)
                 for _ in range(size))  # fmt: skip
        micro["erase"] = torch.stack(list(draws))
    return micro


def masked(task: Any, size: int) -> dict[str, Tensor]:
    """Random pictures (B,3,c,c) with a random class (B,1,c,c) for each pixel, without padding."""
    generator = torch.Generator().manual_seed(1)
    shape = (size, 1, task.crop, task.crop)
    label = torch.randint(0, len(task.data.classes), shape, generator=generator)
    sides = torch.full((size, 2), task.crop)
    return {"image": noise(size, task.crop), "label": label.to(torch.uint8), "size": sides}


BUILDERS = {"linear": linear, "finetune": finetune, "segmentation": segmentation}
SAMPLES = {"linear": labelled, "finetune": erasable, "segmentation": masked}
