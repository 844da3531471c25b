"""The report as one HTML file that needs no network: tables, figures, cards, missing cells."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from pathlib import Path

from harness.report import cards, figures, formats, latex, numbers, pictures
from harness.report.build import Report
from harness.report.markup import Safe, element
from harness.report.rows import Row, evaluations_of
from harness.report.table import Cell, Column, Line, Table, clean

HERE = Path(__file__).parent
STATES = ("done", "running", "queued", "missing", "blocked", "failed")


def page(report: Report) -> str:
    """The whole document. Everything that comes from files of a study is escaped."""
    evals = evaluations_of(report.rows)
    title = clean(report.study.get("title") or report.study["name"])
    body = [
        _header(report, title),
        element("main", _sections(report, report.rows, evals)),
        element("footer", f"harness report · {clean(report.study['name'])}", class_="quiet"),
        element("div", id="said", role="status", aria_live="polite"),
        element("script", Safe((HERE / "page.js").read_text(encoding="utf-8"))),
    ]
    head = [
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Safe((HERE / "page.css").read_text(encoding="utf-8"))),
    ]
    document = element("html", element("head", head), element("body", body), lang="en")
    return f"<!doctype html>\n{document}\n"


def _sections(report: Report, found: list[Row], evals: list[str]) -> list[object]:
    tables = [table_section(table) for table in report.tables]
    costs = [
        *figures.against(found, evals, "images", "images seen", numbers.count),
        *figures.against(found, evals, "seconds", "time spent", numbers.duration),
    ]
    along = figures.along(report)
    left = len(found) - figures.ROWS
    note = element("p", f"The first {figures.ROWS} rows are drawn; {left} more are in the tables.")
    return [
        _section("At a glance", "glance", _charts(figures.glance(found, evals))),
        *tables,
        _section("Along the schedule", "along", _charts([along])) if along else None,
        costs
        and _section(
            "Accuracy against cost",
            "cost",
            element("p", "Pretraining and evaluation together, mean over seeds.", class_="quiet"),
            figures.legend(found),
            _charts(costs),
            note if left > 0 else None,
        ),
        cards.missing(report),
        _section("Curves", "curves", *figures.curves(report, found, evals)),
        _section("Pictures", "pictures", *pictures.pictures(report, found)),
        _section("Protocols", "protocols", *cards.protocols(report, found, evals)),
        _section("Environment", "environment", cards.environment(report)),
    ]


def _section(title: str, name: str, *children: Safe | None) -> Safe | None:
    """A section, or None where there is nothing to show in it."""
    if not any(children):
        return None
    return element("section", element("h2", title), children, id=name)


def _charts(charts: list[Safe]) -> Safe | None:
    return element("div", charts, class_="charts") if charts else None


def _header(report: Report, title: str) -> Safe:
    scale = clean(report.study["scale"])
    states = Counter(each["state"] for each in report.records if each["state"] != "absent")
    return element(
        "header",
        element("p", "Benchmark report", class_="kicker"),
        element("h1", title),
        element(
            "p",
            element("span", f"scale: {scale}", class_="badge"),
            element("span", f"study {clean(report.study['name'])}"),
            element("span", _size(report)),
            element("span", _latest(report)),
            class_="facts",
        ),
        _progress(states),
        element("p", report.tables[0].banner, class_="banner", role="note")
        if report.tables[0].banner
        else None,
    )


def _size(report: Report) -> str:
    seeds = max(row.seeds for row in report.rows)
    return f"{len(report.rows)} rows, {seeds} seed{'s' * (seeds > 1)}"


def _latest(report: Report) -> str:
    moments = [each["finished"] for each in report.records if each["finished"]]
    if not moments:
        return "nothing finished yet"
    return "results up to " + time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(max(moments)))


def _progress(states: Counter[str]) -> Safe:
    """A bar of the cells by state; the same in words below it."""
    present = [state for state in STATES if states[state]]
    bars = [
        element("span", style=f"flex-grow:{states[state]}", class_=f"state {state}")
        for state in present
    ]
    words = ", ".join(f"{states[state]} {cards.WORDS.get(state, state)}" for state in present)
    text = element("p", f"Cells: {words}", class_="quiet")
    return element("div", element("div", bars, class_="progress", aria_hidden="true"), text)


def table_section(table: Table) -> Safe:
    """A table with its tools: filter, columns, copies. page.js makes it sortable."""
    tools = element(
        "div",
        element("label", "Filter ", element("input", type="search", data_filter=True)),
        _column_menu(table),
        element("button", "Copy as LaTeX", type="button", data_as="latex"),
        element("button", "Copy as Markdown", type="button", data_as="markdown"),
        class_="tools",
    )
    notes = element("ul", [element("li", note) for note in table.notes], class_="notes")
    shown = element("table", _head(table), element("tbody", map_lines(table)), class_="data")
    heading = "Comparison" if table.name == "comparison" else table.title
    return element(
        "section",
        element("h2", heading, element("span", table.scale, class_="badge")),
        tools,
        element("div", shown, class_="wide", tabindex="0", role="region", aria_label=table.title),
        notes,
        id=table.name,
        class_="table",
        data_scale=table.scale,
    )


def _column_menu(table: Table) -> Safe:
    boxes = [
        element(
            "label",
            element("input", type="checkbox", checked=True, data_column=index),
            " ",
            formats.heading(column),
        )
        for index, column in enumerate(table.columns)
    ]
    return element("details", element("summary", "Columns"), element("div", boxes), class_="menu")


def _head(table: Table) -> Safe:
    """Two rows: names of groups over their columns, then the columns' own."""
    groups = [
        element(
            "th", formats.GROUPS.get(group), colspan=len(list(columns)), class_="group " + group
        )
        for group, columns in itertools.groupby(table.columns, key=lambda column: column.group)
    ]
    cells = [
        element(
            "th",
            element("button", column.title, type="button"),
            scope="col",
            class_=_class(column),
            data_name=column.name,
            data_md=formats.markdown_text(formats.heading(column)),
            data_tex=latex.escaped(formats.heading(column)),
            data_align=align,
        )
        for column, align in zip(table.columns, latex.alignments(table), strict=True)
    ]
    named = any(column.group in formats.GROUPS for column in table.columns)
    return element("thead", element("tr", groups) if named else None, element("tr", cells))


def map_lines(table: Table) -> list[Safe]:
    """The rows of a table's body."""
    return [
        element(
            "tr",
            [
                _cell(cell, column, index == 0, line)
                for index, (cell, column) in enumerate(zip(line.cells, table.columns, strict=True))
            ],
            class_=line.role or None,
        )
        for line in table.lines
    ]


def _cell(cell: Cell, column: Column, first: bool, line: Line) -> Safe:
    text = clean(cell.text)
    markdown, tex = formats.markdown_cell(cell), latex.cell_text(cell)
    return element(
        "th" if first else "td",
        {"best": element("strong", text), "second": element("u", text)}.get(cell.mark, text),
        scope="row" if first else None,
        class_=f"{_class(column)} {cell.kind} {column.name}",
        title=clean(cell.note) or None,
        data_value=f"{cell.value:.6g}" if cell.value is not None else None,
        data_md=markdown if markdown != text else None,
        data_tex=tex if tex != text else None,
    )


def _class(column: Column) -> str:
    return f"{'number' if column.numeric else 'word'} {column.group}".strip()
