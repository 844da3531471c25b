"""Ablations: per method the default row, and for every other row what changed and by how much."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from harness.report import numbers
from harness.report.comparison import banner, measured
from harness.report.records import SHORT
from harness.report.rows import Record, Row, evaluations_of
from harness.report.table import Cell, Column, Line, Table, clean

NOTES = (
    "The default row shows per cent, the others their difference to it, paired by seed: mean ± "
    "standard deviation of the differences.",
    "≈: the difference does not exceed the noise between seeds: their standard deviation, or "
    f"{numbers.NOISE_FLOOR} points. (n=1): one seed cannot tell the noise.",
)


def ablations(
    rows: Sequence[Row], study: dict[str, Any], defaults: Mapping[str, Mapping[str, Any]]
) -> list[Table]:
    """One table for each method of which the study has rows with changed fields.

    `defaults` maps a method to its default row's pretraining task as plain data, so that a changed
    field can be shown as `8 → 4`; a method that is not in it shows `= 4`.
    """
    methods = dict.fromkeys(row.method for row in rows if row.changed)
    return [
        _table(method, [row for row in rows if row.method == method], study, defaults)
        for method in methods
    ]


def _table(
    method: str,
    rows: Sequence[Row],
    study: dict[str, Any],
    defaults: Mapping[str, Mapping[str, Any]],
) -> Table:
    evals, name = evaluations_of(rows), clean(method)
    plain = next((row for row in rows if not row.changed), None)
    lines = [_default_line(plain, evals)] if plain else []
    lines += [
        _changed_line(row, plain, evals, defaults.get(method, {})) for row in rows if row.changed
    ]
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


def _changed_line(
    row: Row, plain: Row | None, evals: list[str], default: Mapping[str, Any]
) -> Line:
    changes = [change(field, value, default) for field, value in row.changed.items()]
    cells = [difference(row.cell(each), plain.cell(each) if plain else []) for each in evals]
    words = [Cell(clean(row.variant) or "–"), Cell(clean("; ".join(changes)))]
    return Line((*words, *cells, Cell(str(row.seeds), float(row.seeds))))


def difference(cell: Sequence[Record], plain: Sequence[Record]) -> Cell:
    """Mean difference over the seeds that both have; the row's own cell where there is none."""
    base = {each["seed"]: each["value"] for each in plain if each["value"] is not None}
    own = {each["seed"]: each["value"] for each in cell if each["value"] is not None}
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


def change(field: str, value: Any, default: Mapping[str, Any]) -> str:
    """`decoder.depth: 8 → 4`, or `decoder.depth = 4` where the default is not known."""
    old = _at(default, f"method.{field}", _at(default, field, None))
    return (
        f"{field} = {_shown(value)}" if old is None else f"{field}: {_shown(old)} → {_shown(value)}"
    )


def _at(plain: Any, path: str, otherwise: Any) -> Any:
    for name in path.split("."):
        if isinstance(plain, Mapping) and name in plain:
            plain = plain[name]
        elif isinstance(plain, list) and name.isdigit() and int(name) < len(plain):
            plain = plain[int(name)]
        else:
            return otherwise
    return plain


def _shown(value: Any) -> str:
    """A part is shown by its name and fields, anything else as it is written in TOML or JSON."""
    if isinstance(value, Mapping) and "type" in value:
        fields = ", ".join(f"{k}={_shown(v)}" for k, v in value.items() if k != "type")
        return f"{value['type']}({fields})"
    return str(value) if isinstance(value, str) else json.dumps(value, default=str)
