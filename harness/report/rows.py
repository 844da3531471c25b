"""The rows of the tables: the records of one method and variant, over its seeds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from harness.report import numbers
from harness.report.numbers import Summary
from harness.report.table import clean

Record = dict[str, Any]
REFERENCES = {
    "random": "the encoder at random initialisation",
    "scratch": "the encoder trained from scratch",
}


@dataclass(frozen=True)
class Row:
    """`place` counts rows from 0 and is the colour, dash and marker of the row in every figure.

    Plain records rather than a DataFrame: cutting a frame into thousands of rows takes minutes.
    """

    place: int
    method: str
    variant: str
    cells: dict[str, list[Record]]

    @property
    def first(self) -> Record:
        return next(iter(self.cells.values()))[0]

    @property
    def label(self) -> str:
        return clean(f"{self.method} {self.variant}")

    @property
    def changed(self) -> dict[str, Any]:
        """The fields in which it differs from the method as it is defined."""
        found: dict[str, Any] = self.first["changed"]
        return found

    @property
    def reference(self) -> bool:
        return self.method in REFERENCES

    @property
    def records(self) -> list[Record]:
        return [record for cell in self.cells.values() for record in cell]

    @property
    def seeds(self) -> int:
        return len({record["seed"] for record in self.records})

    def cell(self, kind: str) -> list[Record]:
        """The records of one evaluation, one per seed."""
        return self.cells.get(kind, [])

    def values(self, kind: str) -> list[float]:
        return list(by_seed(self.cell(kind)).values())

    def summary(self, kind: str) -> Summary | None:
        return numbers.summarise(self.values(kind))


def by_seed(cell: Iterable[Record]) -> dict[int, float]:
    """The values of the seeds that have one."""
    return {each["seed"]: each["value"] for each in cell if each["value"] is not None}


def rows_of(records: Iterable[Record]) -> list[Row]:
    """The rows in the order of the plan."""
    found: dict[tuple[str, str], dict[str, list[Record]]] = {}
    for record in records:
        cells = found.setdefault((record["method"], record["variant"]), {})
        cells.setdefault(record["eval"], []).append(record)
    return [Row(place, *names, cells) for place, (names, cells) in enumerate(found.items())]


def evaluations_of(rows: Iterable[Row]) -> list[str]:
    """The evaluations of all rows in the order of the tables."""
    return list(dict.fromkeys(kind for row in rows for kind in row.cells))
