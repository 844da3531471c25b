"""A table as a value: columns, rows and cells that every output format renders alike."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "measured", "missing", "published", "difference"]
Mark = Literal["", "best", "second"]
Role = Literal["", "default", "reference"]


@dataclass(frozen=True)
class Column:
    """`name` is what CSV files and DataFrames use; `group` is the heading above `title`."""

    name: str
    title: str
    group: str = ""
    numeric: bool = False


@dataclass(frozen=True)
class Cell:
    """What a reader sees (`text`), what sorting uses (`value`), and what is behind it.

    `std` and `n` are the spread and number of seeds of a measured cell; `note` says more (a source,
    a reason). A missing cell's text says why it is missing.
    """

    text: str
    value: float | None = None
    kind: Kind = "text"
    mark: Mark = ""
    std: float | None = None
    n: int = 0
    note: str = ""


@dataclass(frozen=True)
class Line:
    """One line of a table; `role` marks the default row of an ablation and reference rows."""

    cells: tuple[Cell, ...]
    role: Role = ""


@dataclass(frozen=True)
class Table:
    """Rows of one scale only: paper rows and mini rows are never in one table."""

    name: str
    title: str
    scale: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    banner: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if any(len(line.cells) != len(self.columns) for line in self.lines):
            raise ValueError(f"table {self.name}: a line has not {len(self.columns)} cells")


def clean(text: str) -> str:
    """`text` on one line and without control or direction-changing characters.

    Names come from files that others may have written; an escape sequence must not reach a
    terminal, and a line break must not end a table's row.
    """
    if isinstance(text, str) and text.isascii() and text.isprintable():  # nearly every one
        return " ".join(text.split())
    words = "".join(" " if char.isspace() else char for char in str(text))
    kept = "".join(char for char in words if unicodedata.category(char) not in ("Cc", "Cf", "Cs"))
    return " ".join(kept.split())
