"""Values of tiny evaluations that the tests and their subprocesses share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from evals.finetune import FineTuning
from evals.knn import NearestNeighbours
from evals.linear import LinearProbe
from evals.segmentation import Segmentation
from methods.data.sets import Patchwork, PatchworkSegmentation
from methods.parts.augment import EvaluationTransform, FineTuneAugmentation, LinearAugmentation
from methods.parts.encoder import Beit, ViT
from methods.parts.optimisation import Optimisation

DATA = Patchwork(train=40, teacher=10, validation=22, size=48)
MASKS = PatchworkSegmentation(train=40, teacher=10, validation=22, size=48)
VIT = ViT(image=48, patch=16, width=32, depth=4, heads=2)
BEIT = Beit(image=48, patch=16, width=32, depth=4, heads=2)
VALIDATION = EvaluationTransform(48, 48)


def linear(encoder: Any = VIT, **changes: Any) -> LinearProbe:
    """Five updates of a probe with LARS."""
    optimisation = Optimisation(
        epochs=2.5, batch=16, learning_rate=1.0, optimizer="lars", weight_decay=0.0
    )
    return LinearProbe(encoder, DATA, LinearAugmentation(48), VALIDATION, optimisation, **changes)


def finetune(encoder: Any = VIT, **changes: Any) -> FineTuning:
    """Four updates with layer decay."""
    optimisation = Optimisation(epochs=2, batch=16, learning_rate=1e-3, layer_decay=0.65)
    return FineTuning(encoder, DATA, FineTuneAugmentation(48), VALIDATION, optimisation, **changes)


def knn(encoder: Any = VIT, **changes: Any) -> NearestNeighbours:
    """Five neighbours among forty images."""
    return NearestNeighbours(encoder, DATA, VALIDATION, neighbours=5, **changes)


def segmentation(encoder: Any = VIT, **changes: Any) -> Segmentation:
    """Four updates of a small UPerNet; mmengine's schedule, so that its Runner can be compared."""
    optimisation = Optimisation(
        epochs=1,
        batch=8,
        iterations=4,
        warmup_iterations=2,
        warmup="table",
        warmup_start=0.1,
        schedule="poly",
        learning_rate=1e-3,
        weight_decay=0.05,
        layer_decay=0.65,
    )
    task = Segmentation(
        encoder,
        MASKS,
        optimisation,
        crop=48,
        scale=(192, 48),
        channels=8,
        auxiliary_channels=8,
        inference="whole",
    )
    return replace(task, **changes)
