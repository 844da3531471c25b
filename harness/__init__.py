"""The benchmark harness; `harness.load` gives a study's results to notebooks as DataFrames."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from harness.report.results import Results

__all__ = ["load"]


def load(
    study: str = "comparison", store: str | Path = "runs", scale: str | None = None
) -> Results:
    """The results of `study` in `store`: `.table()` and `.runs()` are pandas DataFrames.

    Raises methods.errors.InputError where the store has no such study, or not at `scale`.
    """
    from harness.report.results import Results

    return Results.read(study, store, scale)
