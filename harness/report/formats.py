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
from methods.errors import InputError
from methods.values import from_plain, to_plain

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
    """`text` so that Markdown shows it as it is, HTML included."""
    return re.sub(r"([\\`*_\[\]<>|~#])", r"\\\1", clean(text)).replace("&", "&amp;")


def markdown_cell(cell: Cell) -> str:
    text = markdown_text(cell.text)
    if cell.mark == "best":
        return f"**{text}**"
    if cell.mark == "second":
        return f"<u>{text}</u>"
    return text


def comma_separated(table: Table) -> str:
    """Numbers at full precision; a measured column has its spread and seeds beside it, a published
    one its status.

    A cell without a number holds what the tables say instead: pending, failed (...), not run.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header = [name for column in table.columns for name in (column.name, *_beside(column))]
    writer.writerow(["scale", *header])
    for line in table.lines:
        row: list[Any] = [table.scale]
        for column, cell in zip(table.columns, line.cells, strict=True):
            row.append(clean(cell.text) if cell.value is None else f"{cell.value:.10g}")
            if column.group == "measured":
                std = "" if cell.std is None else f"{cell.std:.10g}"
                row += [std, cell.n][: len(_beside(column))]
            elif _beside(column):
                row.append(cell.note.partition(";")[0])
        writer.writerow(row)
    return out.getvalue()


def _beside(column: Column) -> list[str]:
    """The names of the columns that a CSV file has beside this one."""
    if column.name in ("seeds", "published_epochs"):
        return []
    if column.group == "measured":
        return [f"{column.name}_std", f"{column.name}_n"]
    return [f"{column.name}_status"] if column.group == "published" else []


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


def from_json(
    text: str, where: str = "report.json"
) -> tuple[dict[str, Any], list[Any], list[Table]]:
    """What `to_json` wrote; raises InputError naming `where` and the field."""
    try:
        plain = json.loads(text)
        if plain["format"] != 1:
            raise InputError(f"{where}: format: expected 1, found {plain['format']!r}")
        tables = [from_plain(Table, each, f"{where}: tables") for each in plain["tables"]]
        return plain["study"], plain["records"], tables
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{where}: not a report ({error})") from None


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity; a number that is none becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value
