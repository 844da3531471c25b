"""What evaluations share as values: checks of their fields, and parts of their protocol cards."""

from __future__ import annotations

from typing import Any

from methods.parts.augment import EvaluationTransform
from methods.parts.optimisation import Optimisation


def check_features(layer: int | None, milestone: float) -> None:
    """Raise ValueError where `layer` is none, or a share of the schedule leaves no encoder."""
    if layer is not None and layer < 0:
        raise ValueError(f"layer counts from 0, it cannot be {layer}")
    if not 0 < milestone <= 1:
        raise ValueError(f"milestone must be above 0 and at most 1, not {milestone}")


def features_card(pooling: str, layer: int | None) -> str:
    """`class, after the final norm`."""
    place = "after the final norm" if layer is None else f"output of block {layer}"
    return f"{pooling}, {place}"


def validation_card(validation: EvaluationTransform) -> dict[str, Any]:
    """How images are seen in validation."""
    return {
        "crop": validation.size,
        "resize": validation.shorter_side,
        "interpolation": validation.interpolation,
        "statistics": validation.statistics,
    }


def optimisation_card(optimisation: Optimisation) -> dict[str, Any]:
    """How what is trained was trained."""
    per = f" per {optimisation.per}" if optimisation.per else ""
    iterations = optimisation.iterations
    return {
        "optimiser": optimisation.optimizer,
        "batch": optimisation.batch,
        "learning rate": f"{optimisation.learning_rate:g}{per} = {optimisation.peak:g}",
        "length": f"{iterations} updates" if iterations else f"{optimisation.epochs:g} epochs",
        "weight decay": optimisation.weight_decay,
        "layer decay": optimisation.layer_decay or "none",
        "precision": optimisation.precision,
    }
