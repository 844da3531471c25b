"""Tables as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.report.table import Cell, Column, Table, clean
from methods.values import to_plain

GROUPS = {"measured": "this run", "published": "published", "difference": "difference"}


def markdown(tables: Iterable[Table]) -> str:
    """GitHub's Markdown, one section a table."""
    return "\n".join(map(_markdown_table, tables))


def _markdown_table(table: Table) -> str:
    header = [markdown_text(heading(column)) for column in table.columns]
    rule = ["---:" if column.numeric else "---" for column in table.columns]
    body = [[markdown_cell(cell) for cell in line.cells] for line in table.lines]
    parts = [f"## {markdown_text(table.title)}", ""]
    parts += [f"> {markdown_text(table.banner)}", ""] if table.banner else []
    parts += _aligned([header, rule, *body], [column.numeric for column in table.columns])
    parts += ["", *(f"- {markdown_text(note)}" for note in table.notes), ""]
    return "\n".join(parts)


def _aligned(rows: list[list[str]], right: list[bool]) -> list[str]:
    """Rows of equal width, because Markdown is read in terminals too."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sizes = list(zip(widths, right, strict=True))
    rows[1] = ["-" * (width - flush) + ":" * flush for width, flush in sizes]
    padded = [
        [
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, (width, flush) in zip(row, sizes, strict=True)
        ]
        for row in rows
    ]
    return ["| " + " | ".join(row) + " |" for row in padded]


def heading(column: Column) -> str:
    """`published ft`: Markdown, terminals and phones have no headings over several columns."""
    if column.group in ("", "measured"):
        return column.title
    return f"{GROUPS[column.group]} {column.title.lower()}"


def markdown_text(text: str) -> str:
    """`text` so that Markdown shows it as it is, HTML and formulas included."""
    return re.sub(r"([\\`*_\[\]<>|~#$])", r"\\\1", clean(text)).replace("&", "&amp;")


def markdown_cell(cell: Cell) -> str:
    text = markdown_text(cell.text)
    if cell.mark == "best":
        return f"**{text}**"
    if cell.mark == "second":
        return f"<u>{text}</u>"
    return text


def comma_separated(table: Table) -> str:
    """Numbers at full precision; where there is none, an empty field, and beside it what the tables
    say instead: pending, failed (...), not run.

    A measured column has its spread, seeds and state beside it, a published one its status, and
    every other its state, which is "done" where there is a number.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["scale", *(name for column in table.columns for name in _names(column))])
    for line in table.lines:
        pairs = zip(table.columns, line.cells, strict=True)
        fields = [field for column, cell in pairs for field in _fields(column, cell)]
        writer.writerow([table.scale, *fields])
    return out.getvalue()


COUNTS = ("epochs", "seeds", "published_epochs")  # told by the row itself, never waited for


def _names(column: Column) -> list[str]:
    """The columns of a CSV file that this one becomes."""
    name = column.name
    if not column.numeric or name in COUNTS:
        return [name]
    if column.group == "published":
        return [name, f"{name}_status"]
    spread = [f"{name}_std", f"{name}_n"] if column.group == "measured" else []
    return [name, *spread, f"{name}_state"]


def _fields(column: Column, cell: Cell) -> list[Any]:
    """What a cell is in each of them."""
    if not column.numeric:
        return [clean(cell.text)]
    number = "" if cell.value is None else f"{cell.value:.10g}"
    if column.name in COUNTS:
        return [number]
    if column.group == "published":
        return [number, cell.note.partition(";")[0]]
    spread: list[Any] = []
    if column.group == "measured":
        spread = ["" if cell.std is None else f"{cell.std:.10g}", cell.n]
    missing = cell.text if cell.text != "–" else cell.note
    return [number, *spread, "done" if number else clean(missing)]


def comma_separated_all(tables: Sequence[Table]) -> str:
    """Several tables one after another, each below a line `# <name>`; one alone has none."""
    if len(tables) == 1:
        return comma_separated(tables[0])
    return "\n".join(f"# {clean(each.name)}\n{comma_separated(each)}" for each in tables)


def records_csv(records: Iterable[Mapping[str, Any]], fields: Sequence[str]) -> str:
    """The records as they are: one line per row, seed and evaluation; tables inside as JSON."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fields, lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow(
            {
                k: json.dumps(v, sort_keys=True) if isinstance(v, dict) else v
                for k, v in record.items()
            }
        )
    return out.getvalue()


def to_json(study: Mapping[str, Any], records: Sequence[Any], tables: Iterable[Table]) -> str:
    """Everything that the other formats are made of."""
    plain = {
        "format": 1,
        "study": dict(study),
        "records": [_finite(record) for record in records],
        "tables": [to_plain(table, declared=Table) for table in tables],
    }
    return json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity; a number that is none becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value
