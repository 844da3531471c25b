"""A study's results for notebooks: `harness.load("comparison")`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.report.build import Report, as_text, build
from harness.report.source import StoreSource
from harness.report.table import Cell, Column, Table, clean

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Results:
    """What `harness report` shows, as DataFrames; read when it is loaded and never changed."""

    report: Report

    @classmethod
    def read(cls, study: str, store: str | Path, scale: str | None = None) -> Results:
        """Raises InputError where `store` has no such study, or not at `scale`."""
        return cls(build(StoreSource(Path(store)), study, scale))

    def table(self) -> pandas.DataFrame:
        """The comparison: one line per method and variant; numbers in per cent, NaN where missing.

        Measured columns (lin, ft, seg, knn) have `_std`, `_n` and `_state` beside them.
        """
        return self._named("comparison")

    def claims(self) -> pandas.DataFrame:
        """Every claim with its effect, interval and verdict; KeyError where the study has none."""
        return self._named("claims")

    def ablation(self, method: str) -> pandas.DataFrame:
        """The ablation table of `method`; raises KeyError where the study varies nothing in it."""
        return self._named(f"ablation-{method}")

    def _named(self, name: str) -> pandas.DataFrame:
        return _frame({table.name: table for table in self.report.tables}[name])

    def runs(self) -> pandas.DataFrame:
        """One line per row of the study, seed and evaluation, with its state and value."""
        return self.report.frame.copy()

    def _repr_html_(self) -> str:
        table = self.table()
        shown = [name for name in table.columns if not name.endswith(("_std", "_n", "_state"))]
        return str(table[shown].to_html(escape=True, index=False, na_rep="–"))

    def __repr__(self) -> str:
        about, rows = self.report.study, len(self.report.rows)
        tables = ", ".join(table.name for table in self.report.tables)
        return clean(f"<Results of {about['name']} ({about['scale']}): {rows} rows; {tables}>")

    def __str__(self) -> str:
        return as_text(self.report, "terminal")


def _frame(table: Table) -> pandas.DataFrame:
    import pandas

    lines = [
        {
            name: value
            for column, cell in zip(table.columns, line.cells, strict=True)
            for name, value in _values(column, cell).items()
        }
        for line in table.lines
    ]
    return pandas.DataFrame(lines)


def _values(column: Column, cell: Cell) -> dict[str, Any]:
    if not column.numeric:
        return {column.name: cell.text}
    number = float("nan") if cell.value is None else cell.value
    if cell.kind not in ("measured", "missing") or column.name == "cost":
        return {column.name: number}
    return {
        column.name: number,
        f"{column.name}_std": float("nan") if cell.std is None else cell.std,
        f"{column.name}_n": cell.n,
        f"{column.name}_state": "done" if cell.value is not None else cell.text,
    }
