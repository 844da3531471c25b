"""The figures of the HTML page: results at a glance, accuracy against cost, and curves."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

from harness.report import chart
from harness.report.build import Report
from harness.report.chart import Curve, Dots, Point
from harness.report.comparison import missing_text
from harness.report.convergence import along_schedule
from harness.report.markup import Safe, element
from harness.report.records import METRIC
from harness.report.rows import Row, rows_of

NAMES = {
    "linear": "Linear probe, top-1",
    "finetune": "Fine-tuning, top-1",
    "segmentation": "Segmentation, mIoU",
    "knn": "Nearest neighbours, top-1",
}
ROWS = 40  # a page with the curves of hundreds of rows would be read by nobody
SAMPLES = 60


def legend(found: list[Row]) -> Safe:
    """Every row with its dash and marker."""
    items = [element("li", chart.swatch(each.place), each.label) for each in found[:ROWS]]
    return element("ul", items, class_="legend")


def glance(found: list[Row], evals: list[str]) -> list[Safe]:
    """One chart per evaluation: seeds, means and spread of every row that is measured by it."""
    return [chart.dots(NAMES[kind], _dots(found, kind)) for kind in evals]


def _dots(found: list[Row], kind: str) -> list[Dots]:
    rows = []
    for row in found[:ROWS]:
        cell = row.cell(kind)
        if all(record["state"] == "absent" for record in cell):
            continue
        words = dict.fromkeys(missing_text(record) for record in cell)
        missing = "; ".join(word for word in words if word)
        rows.append(Dots(row.label, row.place, tuple(row.values(kind)), missing))
    return rows


def against(
    found: list[Row], evals: list[str], column: str, x_title: str, unit: Callable[[float], str]
) -> list[Safe]:
    """One chart per evaluation: accuracy against `column`, pretraining and evaluation together."""
    charts = []
    for kind in evals:
        points = [point for row in found[:ROWS] for point in _point(row, kind, column)]
        if points:
            charts.append(chart.scatter(NAMES[kind], x_title, points, unit))
    return charts


def _point(row: Row, kind: str, column: str) -> Iterator[Point]:
    done = [each for each in row.cell(kind) if each["state"] == "done" and each[column] is not None]
    if done:
        spent = [each[column] + (each[f"pretrain_{column}"] or 0) for each in done]
        values = [each["value"] for each in done]
        mean = statistics.fmean(values)
        yield Point(row.label, row.place, statistics.fmean(spent), mean, min(values), max(values))


def along(report: Report) -> Safe | None:
    """Linear probes along the schedule, of the rows that have them, as curves with their seeds."""
    drawn = []
    for row in rows_of(report.records)[:ROWS]:
        cells = along_schedule(row)
        values = [[each["value"] for each in cell] for cell in cells.values()]
        if len(cells) > 1 and all(None not in cell for cell in values):
            x = tuple(100 * share for share in cells)
            mean = tuple(map(statistics.fmean, values))
            low, high = tuple(map(min, values)), tuple(map(max, values))
            drawn.append(Curve(row.label, row.place, x, mean, low, high))
    title = "Linear probe along the schedule"
    return chart.curves(title, drawn, "per cent of the schedule") if drawn else None


def curves(report: Report, found: list[Row], evals: list[str]) -> list[Safe]:
    """The loss of every row's pretraining, then of each evaluation, seeds as bands.

    Pretraining losses of different methods are different quantities, so each has its own panel;
    an evaluation's are one quantity and share one where they are few.
    """
    shown = found[:ROWS]
    panels = [
        chart.curves(each.label, [each], small=True)
        for row in shown
        for each in _curve(report, row, "pretrain", "loss")
    ]
    parts, shared, apart = _panel("Pretraining loss", panels), [], []
    for kind in evals:
        metric = METRIC[kind]
        drawn = [each for row in shown for each in _curve(report, row, kind, metric)]
        if len(drawn) < len(shown) // 2 or not drawn:
            metric = "loss"
            drawn = [each for row in shown for each in _curve(report, row, kind, metric)]
        title = f"{NAMES[kind].split(',')[0]}: {metric}"
        if len(drawn) > chart.COLOURS:
            panels = [chart.curves(each.label, [each], small=True) for each in drawn]
            apart += _panel(title, panels)
        elif drawn:
            shared.append(chart.curves(title, drawn))
    return [*parts, *_panel("Evaluations", shared), *apart]


def _panel(title: str, charts: list[Safe]) -> list[Safe]:
    return [element("h3", title), element("div", charts, class_="charts")] if charts else []


def _curve(report: Report, row: Row, kind: str, metric: str) -> Iterator[Curve]:
    """The row's curve, if at least one seed has two steps of it."""
    if kind == "pretrain":
        keys = dict.fromkeys(each["pretrain_key"] for each in row.records)
    else:
        keys = dict.fromkeys(each["key"] for each in row.cell(kind))
    seeds = [steps(report.source.history(key), metric) for key in keys if key]
    seeds = [each for each in seeds if len(each[0]) > 1]
    if seeds:
        yield _band(row, seeds)


def steps(lines: list[dict[str, Any]], metric: str) -> tuple[list[float], list[float]]:
    """The steps at which a metric was logged, and its values there; without NaN.

    Of a step's lines the last wins: an evaluation at the end may use the training's names.
    """
    found = {line["step"]: line[metric] for line in lines if metric in line and "step" in line}
    known = [
        (float(s), float(v)) for s, v in found.items() if v == v and isinstance(v, int | float)
    ]
    return [step for step, _ in known], [value for _, value in known]


def _band(row: Row, seeds: list[tuple[list[float], list[float]]]) -> Curve:
    """Mean, lowest and highest over seeds, at SAMPLES steps that all of them have reached."""
    import numpy

    first = max(steps[0] for steps, _ in seeds)
    last = max(min(steps[-1] for steps, _ in seeds), first)
    x = numpy.linspace(first, last, SAMPLES)
    values = numpy.stack([numpy.interp(x, steps, value) for steps, value in seeds])

    def rounded(array: Any) -> tuple[float, ...]:
        return tuple(round(float(each), 5) for each in array)

    low, high = rounded(values.min(axis=0)), rounded(values.max(axis=0))
    return Curve(row.label, row.place, rounded(x), rounded(values.mean(axis=0)), low, high)
