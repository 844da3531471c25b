"""The figures of the HTML page: results at a glance, accuracy against cost, and curves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.report import chart
from harness.report.build import Report
from harness.report.chart import Curve, Dots, Point
from harness.report.comparison import missing_text
from harness.report.markup import Safe, element
from harness.report.records import METRIC, SHORT
from harness.report.table import clean

if TYPE_CHECKING:
    import pandas

NAMES = {
    "linear": "Linear probe, top-1",
    "finetune": "Fine-tuning, top-1",
    "segmentation": "Segmentation, mIoU",
    "knn": "Nearest neighbours, top-1",
}
ROWS = 40  # a page with the curves of hundreds of rows would be read by nobody
SAMPLES = 60


@dataclass(frozen=True)
class Group:
    """The seeds of one row of the tables. `series` is its place, colour, dash and marker."""

    label: str
    series: int
    rows: pandas.DataFrame

    def records(self, kind: str) -> pandas.DataFrame:
        return self.rows[self.rows["eval"] == kind]


def groups(report: Report) -> list[Group]:
    """The rows of the comparison in its order."""
    found = report.frame.groupby(["method", "variant"], sort=False)
    return [
        Group(clean(f"{method} {variant}"), index, rows)
        for index, ((method, variant), rows) in enumerate(found)
    ]


def legend(found: list[Group]) -> Safe:
    """Every row with its dash and marker."""
    items = [element("li", chart.swatch(each.series), each.label) for each in found[:ROWS]]
    return element("ul", items, class_="legend")


def glance(found: list[Group], evals: list[str]) -> list[Safe]:
    """One chart per evaluation: seeds, means and spread of every row that is measured by it."""
    return [chart.dots(NAMES[kind], _dots(found, kind)) for kind in evals]


def _dots(found: list[Group], kind: str) -> list[Dots]:
    rows = []
    for group in found[:ROWS]:
        records = group.records(kind)
        if (records["state"] == "absent").all():
            continue
        words = dict.fromkeys(missing_text(each) for each in records.to_dict("records"))
        values = tuple(float(value) for value in records["value"].dropna())
        missing = "; ".join(word for word in words if word)
        rows.append(Dots(group.label, group.series, values, missing))
    return rows


def against(
    found: list[Group], evals: list[str], column: str, x_title: str, unit: Callable[[float], str]
) -> list[Safe]:
    """One chart per evaluation: accuracy against `column`, pretraining and evaluation together."""
    charts = []
    for kind in evals:
        points = [point for group in found[:ROWS] for point in _point(group, kind, column)]
        if points:
            charts.append(chart.scatter(NAMES[kind], x_title, points, unit))
    return charts


def _point(group: Group, kind: str, column: str) -> Iterator[Point]:
    done = group.records(kind)
    done = done[done["state"] == "done"]
    spent = done[column] + done[f"pretrain_{column}"].fillna(0)
    known = spent.notna()
    if known.any():
        values = done.loc[known, "value"]
        x, y = float(spent[known].mean()), float(values.mean())
        yield Point(group.label, group.series, x, y, float(values.min()), float(values.max()))


def curves(report: Report, found: list[Group], evals: list[str]) -> list[Safe]:
    """The loss of every row's pretraining, then of each evaluation, seeds as bands.

    Pretraining losses of different methods are different quantities, so each has its own panel;
    an evaluation's are one quantity and share one where they are few.
    """
    shown = found[:ROWS]
    panels = [
        chart.curves(each.label, [each], small=True)
        for group in shown
        for each in _curve(report, group, "pretrain", "loss")
    ]
    parts, shared, apart = _panel("Pretraining loss", panels), [], []
    for kind in evals:
        metric = METRIC[kind]
        drawn = [each for group in shown for each in _curve(report, group, kind, metric)]
        if len(drawn) < len(shown) // 2 or not drawn:
            metric = "loss"
            drawn = [each for group in shown for each in _curve(report, group, kind, metric)]
        title = f"{NAMES[kind].split(',')[0]}: {metric}"
        if len(drawn) > chart.COLOURS:
            panels = [chart.curves(each.label, [each], small=True) for each in drawn]
            apart += _panel(title, panels)
        elif drawn:
            shared.append(chart.curves(title, drawn))
    return [*parts, *_panel("Evaluations", shared), *apart]


def _panel(title: str, charts: list[Safe]) -> list[Safe]:
    return [element("h3", title), element("div", charts, class_="charts")] if charts else []


def _curve(report: Report, group: Group, kind: str, metric: str) -> Iterator[Curve]:
    """The group's curve, if at least one seed has two steps of it."""
    if kind == "pretrain":
        keys = dict.fromkeys(group.rows["pretrain_key"])
    else:
        keys = dict.fromkeys(group.records(kind)["key"])
    seeds = [_steps(report.source.history(key), metric) for key in keys if key]
    seeds = [each for each in seeds if len(each[0]) > 1]
    if seeds:
        yield _band(group, seeds)


def _steps(lines: list[dict[str, Any]], metric: str) -> tuple[list[float], list[float]]:
    found = [(line["step"], line[metric]) for line in lines if metric in line and "step" in line]
    known = [(float(s), float(v)) for s, v in found if v == v and isinstance(v, int | float)]
    return [step for step, _ in known], [value for _, value in known]


def _band(group: Group, seeds: list[tuple[list[float], list[float]]]) -> Curve:
    """Mean, lowest and highest over seeds, at SAMPLES steps that all of them have reached."""
    import numpy

    first = max(steps[0] for steps, _ in seeds)
    last = max(min(steps[-1] for steps, _ in seeds), first)
    x = numpy.linspace(first, last, SAMPLES)
    values = numpy.stack([numpy.interp(x, steps, value) for steps, value in seeds])

    def row(array: Any) -> tuple[float, ...]:
        return tuple(round(float(each), 5) for each in array)

    low, high = row(values.min(axis=0)), row(values.max(axis=0))
    return Curve(group.label, group.series, row(x), row(values.mean(axis=0)), low, high)


def evaluations_of(report: Report) -> list[str]:
    """The study's evaluations in the order of the tables."""
    return [kind for kind in SHORT if kind in set(report.frame["eval"])]
