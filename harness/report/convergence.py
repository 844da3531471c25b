"""Convergence: accuracy along the schedule of the rows that were probed on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.claim import at_milestone
from harness.report import numbers
from harness.report.comparison import banner, measured, missing_text
from harness.report.paired import effect
from harness.report.rows import Record, Row, by_seed
from harness.report.table import Cell, Column, Line, Table

KIND = "linear"
NOTES = (
    "Linear probe after each share of the pretraining's schedule, per cent, mean ± standard "
    "deviation over seeds; an encoder before the end has not seen the decay of the learning rate.",
    "mean: over the shares shown, the area under the curve. Differences are paired by seed, with "
    "their 95 % interval.",
)


def convergence(
    rows: Sequence[Row], pairs: Sequence[tuple[str, str]], study: dict[str, Any]
) -> list[Table]:
    """One table, or none where no row was probed on the way.

    `pairs` name the rows, by label, whose differences (the first minus the second) are lines too.
    """
    curves = {row.label: along_schedule(row) for row in rows}
    curves = {label: curve for label, curve in curves.items() if len(curve) > 1}
    if not curves:
        return []
    shares = sorted({share for curve in curves.values() for share in curve})
    lines = [_line(label, curve, shares) for label, curve in curves.items()]
    lines += [
        _difference_line(*pair, curves, shares)
        for pair in dict.fromkeys(pairs)
        if pair[0] in curves and pair[1] in curves
    ]
    columns = (
        Column("row", "Row"),
        *(Column(f"lin_{100 * s:g}", f"{100 * s:g} %", "measured", True) for s in shares),
        Column("mean", "mean", "measured", True),
    )
    about = (study["scale"], columns, tuple(lines), banner(study), NOTES)
    return [Table("convergence", "Accuracy along the schedule", *about)]


Curve = Mapping[float, Sequence[Record]]
"""The records of a row, one per seed, by the share of its schedule."""


def along_schedule(row: Row) -> dict[float, list[Record]]:
    """The row's linear probes by the share of its schedule that the encoder has seen."""
    places = [name.partition("@") for name in row.cells]
    shares = [float(share or 100) / 100 for kind, _, share in places if kind == KIND]
    return {share: row.cell(at_milestone(KIND, share)) for share in sorted(shares)}


def _line(label: str, curve: Curve, shares: Sequence[float]) -> Line:
    cells = [measured(curve.get(share, [])) for share in shares]
    return Line((Cell(label), *cells, measured(_means(curve))))


def _means(curve: Curve) -> list[Record]:
    """A record a seed: the mean over the shares, or the first that lacks a value."""
    seeds: dict[int, list[Record]] = {}
    for each in (record for cell in curve.values() for record in cell):
        seeds.setdefault(each["seed"], []).append(each)
    found = []
    for cell in seeds.values():
        lacking = next((each for each in cell if each["value"] is None), None)
        mean = None if lacking else sum(each["value"] for each in cell) / len(cell)
        found.append({**(lacking or cell[0]), "value": mean})
    return found


def _difference_line(
    first: str, second: str, curves: Mapping[str, Curve], shares: Sequence[float]
) -> Line:
    ours, theirs = curves[first], curves[second]
    cells = [_difference(ours.get(share, []), theirs.get(share, [])) for share in shares]
    cells.append(_difference(_means(ours), _means(theirs)))
    return Line((Cell(f"{first} − {second}"), *cells))


def _difference(treatment: Sequence[Record], control: Sequence[Record]) -> Cell:
    found = effect(by_seed(treatment), by_seed(control))
    if found is None:
        words = dict.fromkeys(missing_text(each) for each in (*treatment, *control))
        return Cell("; ".join(word for word in words if word) or "not run", None, "missing")
    text = numbers.signed(found.mean)
    if found.low is not None and found.high is not None:
        text += f" ({numbers.signed(found.low)} to {numbers.signed(found.high)})"
    summary = numbers.summarise(found.differences)
    std = summary.std if summary else None
    return Cell(text, found.mean, "difference", "", std, len(found.differences))
