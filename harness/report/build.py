"""A report of one study: its records, their DataFrame, and the tables made of it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import published
from harness.report import formats
from harness.report.ablation import ablations
from harness.report.claims import claims
from harness.report.comparison import comparison
from harness.report.latex import latex
from harness.report.records import FIELDS, frame, make_records
from harness.report.rows import Record, Row, rows_of
from harness.report.source import Source
from harness.report.table import Table
from harness.report.terminal import terminal
from methods.errors import InputError
from methods.values import did_you_mean

if TYPE_CHECKING:
    import pandas

FORMATS = {
    "terminal": "txt",
    "md": "md",
    "csv": "csv",
    "json": "json",
    "latex": "tex",
    "html": "html",
}


@dataclass(frozen=True)
class Report:
    """What every output format is made of. The first table is what the study is for.

    `rows` have the evaluations of finished encoders, `records` those at milestones too.
    """

    source: Source
    plan: Mapping[str, Any]
    records: list[Record]
    rows: list[Row]
    tables: tuple[Table, ...]

    @property
    def study(self) -> dict[str, Any]:
        """Name, title, scale and its note."""
        return dict(self.plan["study"])

    @functools.cached_property
    def frame(self) -> pandas.DataFrame:
        """The records as a DataFrame with the columns records.FIELDS."""
        return frame(self.records)


def build(source: Source, study: str, scale: str | None = None) -> Report:
    """Reads everything but curves and pictures. Raises InputError where there is no such study."""
    plan = source.plan(study, scale)
    records = make_records(source, plan)
    if not records:
        raise InputError(f"study {study!r} has no evaluation to report")
    rows, about = rows_of(each for each in records if "@" not in each["eval"]), dict(plan["study"])
    tables = claims(source, plan, rows_of(records))
    compared = comparison(rows, about, published.read())
    tables.append(replace(compared, notes=(*compared.notes, *alarms(source, plan))))
    tables += ablations(rows, about, functools.partial(_pretraining, source))
    return Report(source, plan, records, rows, tuple(tables))


def alarms(source: Source, plan: Mapping[str, Any]) -> Iterator[str]:
    """A note for each alarm of each stage: numbers that a person should not take as they are."""
    for key, stage in plan["stages"].items():
        for text in source.outcome(key).get("alarms") or ():
            yield f"Alarm in {stage['kind']}/{stage['label']}: {text}"


def _pretraining(source: Source, row: Row) -> Mapping[str, Any]:
    """The row's pretraining task as plain data, that of its first seed."""
    key = row.first["pretrain_key"]
    return (source.stage(key).get("task") if key else None) or {}


def render(
    source: Source,
    study: str = "comparison",
    scale: str | None = None,
    format: str = "terminal",
    width: int | None = None,
) -> str:
    """The report as text. `width` is the terminal's; without it tables are as wide as they are."""
    _check_format(format)
    return as_text(build(source, study, scale), format, width)


def as_text(report: Report, format: str, width: int | None = None) -> str:
    """The report in one of FORMATS; of several tables in CSV each has its name above it."""
    if format == "terminal":
        return terminal(report.tables, width)
    if format == "md":
        return formats.markdown(report.tables)
    if format == "csv":
        return formats.comma_separated_all(report.tables)
    if format == "json":
        return formats.to_json(report.study, report.records, report.tables)
    if format == "latex":
        return latex(report.tables)
    from harness.report.page import page

    return page(report)


def write(
    source: Source, study: str, scale: str | None, format: str | None, out: Path
) -> list[Path]:
    """Writes the files into `out`: `<study>-<scale>.<format>`, or without `format` all of them.

    Tables go into one file per format; CSV has one file per table, and the records in
    `<study>-<scale>-runs.csv`. Raises InputError where `out` cannot be written.
    """
    for each in [format] if format else []:
        _check_format(each)
    report = build(source, study, scale)
    name = f"{report.study['name']}-{report.study['scale']}"
    texts: dict[str, str] = {}
    for each in [format] if format else [each for each in FORMATS if each != "terminal"]:
        if each == "csv":
            first, *rest = map(formats.comma_separated, report.tables)
            texts[f"{name}.csv"] = first
            names = [table.name for table in report.tables[1:]]
            texts |= {f"{name}-{table}.csv": text for table, text in zip(names, rest, strict=True)}
            texts[f"{name}-runs.csv"] = formats.records_csv(report.records, FIELDS)
        else:
            texts[f"{name}.{FORMATS[each]}"] = as_text(report, each)
    return [_write(out, file, text) for file, text in texts.items()]


def _write(out: Path, name: str, text: str) -> Path:
    path = out / "".join(char if char.isalnum() or char in "-_." else "_" for char in name)
    try:
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InputError(f"--out {out}: {path.name}: {error.strerror}") from None
    return path


def _check_format(format: str) -> None:
    if format not in FORMATS:
        raise InputError(f"--format: unknown {format!r}{did_you_mean(format, FORMATS)}")
