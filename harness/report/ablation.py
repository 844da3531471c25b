"""Ablations: per method the default row, and for every other row what changed and by how much."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harness.report import numbers
from harness.report.comparison import REFERENCES, banner, measured
from harness.report.records import SHORT
from harness.report.table import Cell, Column, Line, Table, clean

if TYPE_CHECKING:
    import pandas


def ablations(
    frame: pandas.DataFrame, study: dict[str, Any], defaults: Mapping[str, Mapping[str, Any]]
) -> list[Table]:
    """One table for each method of which the study has rows with changed fields.

    `defaults` maps a method to its default row's pretraining task as plain data, so that a changed
    field can be shown as `8 → 4`; a method that is not in it shows `= 4`.
    """
    tables = []
    for method, rows in frame.groupby("method", sort=False):
        if method not in REFERENCES and rows["changed"].astype(bool).any():
            tables.append(_table(str(method), rows, study, defaults.get(str(method), {})))
    return tables


def _table(
    method: str, rows: pandas.DataFrame, study: dict[str, Any], default: Mapping[str, Any]
) -> Table:
    evals = list(dict.fromkeys(rows["eval"]))
    plain = rows[~rows["changed"].astype(bool)]
    lines = [_default_line(plain, evals)] if len(plain) else []
    changed = rows[rows["changed"].astype(bool)]
    lines += [
        _changed_line(group, plain, evals, default)
        for _, group in changed.groupby("variant", sort=False)
    ]
    columns = (
        Column("variant", "Variant"),
        Column("changed", "Changed"),
        *(Column(SHORT[each], SHORT[each], "", True) for each in evals),
        Column("seeds", "Seeds", "", True),
    )
    name = clean(method)
    notes = (
        "The default row shows per cent, the others their difference to it, paired by seed: mean ± "
        "standard deviation of the differences.",
        "≈: the difference does not exceed the noise between seeds, or one seed cannot tell.",
    )
    title = f"Ablations of {name}"
    return Table(
        f"ablation-{name}", title, study["scale"], columns, tuple(lines), banner(study), notes
    )


def _default_line(rows: pandas.DataFrame, evals: list[str]) -> Line:
    cells = [measured(rows[rows["eval"] == each]) for each in evals]
    seeds = rows["seed"].nunique()
    words = [Cell("default"), Cell("–", note="the method as it is defined")]
    return Line((*words, *cells, Cell(str(seeds), float(seeds))), "default")


def _changed_line(
    rows: pandas.DataFrame, plain: pandas.DataFrame, evals: list[str], default: Mapping[str, Any]
) -> Line:
    first = rows.iloc[0]
    changes = [change(field, value, default) for field, value in first["changed"].items()]
    cells = [difference(rows[rows["eval"] == each], plain[plain["eval"] == each]) for each in evals]
    seeds = rows["seed"].nunique()
    words = [Cell(clean(first["variant"]) or "–"), Cell(clean("; ".join(changes)))]
    return Line((*words, *cells, Cell(str(seeds), float(seeds))))


def difference(rows: pandas.DataFrame, plain: pandas.DataFrame) -> Cell:
    """Mean difference over the seeds that both have; the row's own cell where there is none."""
    own = rows.set_index("seed")["value"].dropna()
    base = plain.set_index("seed")["value"].dropna()
    both = (own - base).dropna()
    summary = numbers.summarise(list(both))
    cell = measured(rows)
    if summary is None:
        return cell
    text = numbers.signed(summary.mean)
    if summary.std is not None:
        text += f" ± {summary.std:.1f}"
    clear = summary.std is not None and abs(summary.mean) > max(numbers.NOISE_FLOOR, summary.std)
    note = f"{cell.text}, {'clear' if clear else 'within the noise'}"
    text = text if clear else f"{text} ≈"
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
