"""Ablations: per method the default row, and for every other row what changed and by how much."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.report import numbers
from harness.report.changes import changes
from harness.report.comparison import banner, measured
from harness.report.records import SHORT
from harness.report.rows import Record, Row, by_seed, evaluations_of
from harness.report.table import Cell, Column, Line, Table, clean

NOTES = (
    "The default row shows per cent, the others their difference to it, paired by seed: mean ± "
    "standard deviation of the differences.",
    "≈: the difference does not exceed the noise between seeds: their standard deviation, or "
    f"{numbers.NOISE_FLOOR} points. (n=1): one seed cannot tell the noise.",
)


Tasks = Callable[[Row], Mapping[str, Any]]
"""The pretraining task of a row as plain data; empty where it has not begun."""


def ablations(rows: Sequence[Row], study: dict[str, Any], tasks: Tasks) -> list[Table]:
    """One table for each method of which the study has rows with changed fields."""
    methods = dict.fromkeys(row.method for row in rows if row.changed)
    return [
        _table(method, [row for row in rows if row.method == method], study, tasks)
        for method in methods
    ]


def _table(method: str, rows: Sequence[Row], study: dict[str, Any], tasks: Tasks) -> Table:
    evals, name = evaluations_of(rows), clean(method)
    plain = next((row for row in rows if not row.changed), None)
    default = tasks(plain) if plain else {}
    lines = [_default_line(plain, evals)] if plain else []
    for row in rows:
        if row.changed:
            words = changes(row.changed, tasks(row), default)
            lines.append(_changed_line(row, plain, evals, *map(clean, words)))
    columns = (
        Column("variant", "Variant"),
        Column("changed", "Changed"),
        *(Column(SHORT[each], SHORT[each], "", True) for each in evals),
        Column("seeds", "Seeds", "", True),
    )
    title = f"Ablations of {name}"
    about = (study["scale"], columns, tuple(lines), banner(study), NOTES)
    return Table(f"ablation-{name}", title, *about)


def _default_line(row: Row, evals: list[str]) -> Line:
    cells = [measured(row.cell(each)) for each in evals]
    words = [Cell("default"), Cell("–", note="the method as it is defined")]
    return Line((*words, *cells, Cell(str(row.seeds), float(row.seeds))), "default")


def _changed_line(row: Row, plain: Row | None, evals: list[str], short: str, whole: str) -> Line:
    cells = [difference(row.cell(each), plain.cell(each) if plain else []) for each in evals]
    changed = Cell(short, note=whole if whole != short else "")
    words = [Cell(clean(row.variant) or "–"), changed]
    return Line((*words, *cells, Cell(str(row.seeds), float(row.seeds))))


def difference(cell: Sequence[Record], plain: Sequence[Record]) -> Cell:
    """Mean difference over the seeds that both have; the row's own cell where there is none."""
    base, own = by_seed(plain), by_seed(cell)
    summary = numbers.summarise([own[seed] - base[seed] for seed in own if seed in base])
    absolute = measured(cell)
    if summary is None:
        return absolute
    if summary.std is None:
        text, told = f"{numbers.signed(summary.mean)} (n=1)", "one seed cannot tell the noise"
    else:
        clear = abs(summary.mean) > max(numbers.NOISE_FLOOR, summary.std)
        text = f"{numbers.signed(summary.mean)} ± {summary.std:.1f}" + ("" if clear else " ≈")
        told = "clear" if clear else "within the noise"
    note = f"{absolute.text}, {told}"
    return Cell(text, summary.mean, "difference", "", summary.std, summary.n, note)
