"""Evaluations of a pretrained encoder: torch-free values whose `run` does the work."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

_PLACES = {
    "linear": ("evals.linear", "LinearProbe"),
    "finetune": ("evals.finetune", "FineTuning"),
    "segmentation": ("evals.segmentation", "Segmentation"),
    "knn": ("evals.knn", "NearestNeighbours"),
}


class _Kinds(Mapping[str, type[Any]]):
    """Kind -> class of its value, imported when asked for."""

    def __getitem__(self, kind: str) -> type[Any]:
        module, name = _PLACES[kind]
        found: type[Any] = getattr(importlib.import_module(module), name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(_PLACES)

    def __len__(self) -> int:
        return len(_PLACES)


KINDS: Mapping[str, type[Any]] = _Kinds()
