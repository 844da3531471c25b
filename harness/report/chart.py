"""Charts as inline SVG: dots with whiskers, scatter, and curves with bands.

A series is told apart by colour, dash and the shape of its marker together, and is named where it
is drawn, so that no chart needs colour to be read. Colours are CSS variables of page.css. Eight of
each make 64 series: after every eight, markers move on by one and dashes by two, so that of 32
series no two share any two of the three.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.report.markup import Safe, element
from harness.report.numbers import count, spread, summarise

COLOURS = 8
DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 2", "1 4", "7 2 2 2 2 2")


@dataclass(frozen=True)
class Dots:
    """The values of one row, one per seed; `missing` is said where there are none."""

    label: str
    series: int
    values: tuple[float, ...]
    missing: str = ""


@dataclass(frozen=True)
class Point:
    """One row's place in a scatter: the mean over its seeds, and how far they reach in y."""

    label: str
    series: int
    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """A mean over seeds along x (ascending), between the lowest and the highest seed."""

    label: str
    series: int
    x: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


Scale = Callable[[float], float]


def ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers from `low` to `high`: steps of 1, 2, 2.5 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((s * power for s in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - rough))
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _linear(low: float, high: float, start: float, end: float) -> Scale:
    if not high > low:
        return lambda value: (start + end) / 2
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _padded(values: Sequence[float], share: float = 0.08) -> tuple[float, float]:
    low, high = min(values), max(values)
    extra = (high - low) * share or abs(high) * 0.05 or 1.0
    return low - extra, high + extra


def _svg(width: float, height: float, title: str, *children: object) -> Safe:
    return element(
        "svg",
        element("title", title),
        *children,
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        role="img",
        aria_label=title,
    )


def _tone(series: int) -> str:
    return f"s{series % COLOURS}"


def dash(series: int) -> str | None:
    """The series' dashes, or None for a whole line."""
    return DASHES[(series + 2 * (series // COLOURS)) % len(DASHES)] or None


def marker(x: float, y: float, series: int, size: float = 4.5) -> Safe:
    """The series' shape: circle, square, triangle, diamond, then the same ones hollow."""
    place = (series + series // COLOURS) % 8
    shape, hollow = place % 4, "hollow" if place >= 4 else ""
    tone = f"mark {_tone(series)} {hollow}".strip()
    if shape == 0:
        return element("circle", cx=x, cy=y, r=size, class_=tone)
    corners = {
        1: ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        2: ((0, -1.2), (1.15, 0.9), (-1.15, 0.9)),
        3: ((0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)),
    }[shape]
    points = " ".join(f"{x + a * size * 0.9:.1f},{y + b * size * 0.9:.1f}" for a, b in corners)
    return element("polygon", points=points, class_=tone)


def swatch(series: int) -> Safe:
    """What a legend shows: the dash and the marker of a series."""
    tone = f"line {_tone(series)}"
    line = element("path", d="M1 7H33", class_=tone, stroke_dasharray=dash(series))
    attributes = {"viewBox": "0 0 34 14", "width": 34, "height": 14, "aria_hidden": "true"}
    return element("svg", line, marker(17, 7, series), **attributes, class_="swatch")


def dots(title: str, rows: Sequence[Dots]) -> Safe:
    """One line per row: every seed as a tick, the mean as a marker, ± one standard deviation."""
    left, width, step = 138, 404, 26
    height = 30 + step * len(rows) + 24
    known = [value for row in rows for value in row.values]
    low, high = _padded(known) if known else (0.0, 100.0)
    x = _linear(low, high, left + 8, width - 72)
    grid = [_vertical(x(tick), 26, height - 24, f"{tick:g}") for tick in ticks(low, high)]
    body = [_dots_row(row, 26 + step * (i + 0.5), left, x) for i, row in enumerate(rows)]
    heading = element("text", title, x=left, y=14, class_="heading")
    return _svg(width, height, f"{title}, per cent", heading, grid if known else None, body)


def _dots_row(row: Dots, y: float, left: float, x: Scale) -> list[object]:
    parts: list[object] = [
        element("text", _short(row.label, 19), x=left - 8, y=y + 4, class_="name")
    ]
    summary = summarise(row.values)
    if summary is None:
        return [*parts, element("text", row.missing, x=left + 8, y=y + 4, class_="missing")]
    tone, middle = _tone(row.series), x(summary.mean)
    parts += [
        element("path", d=f"M{x(value):.1f} {y - 5:.1f}v10", class_=f"seed {tone}")
        for value in row.values
    ]
    if summary.std is not None:
        ends = x(summary.mean - summary.std), x(summary.mean + summary.std)
        parts.append(
            element("path", d=f"M{ends[0]:.1f} {y:.1f}H{ends[1]:.1f}", class_=f"whisker {tone}")
        )
    parts.append(marker(middle, y, row.series))
    text = element("text", spread(summary), x=max(middle, *map(x, row.values)) + 10, y=y + 4)
    tip = f"{row.label}: {spread(summary)} (n={summary.n})"
    return [element("g", element("title", tip), *parts, text)]


def _vertical(x: float, top: float, bottom: float, text: str) -> list[Safe]:
    return [
        element("path", d=f"M{x:.1f} {top:.1f}V{bottom:.1f}", class_="grid"),
        element("text", text, x=x, y=bottom + 15, class_="tick middle"),
    ]


def _horizontal(y: float, left: float, right: float, text: str) -> list[Safe]:
    return [
        element("path", d=f"M{left:.1f} {y:.1f}H{right:.1f}", class_="grid"),
        element("text", text, x=left - 6, y=y + 4, class_="tick end"),
    ]


def scatter(
    title: str, x_title: str, points: Sequence[Point], unit: Callable[[float], str]
) -> Safe:
    """Accuracy (y, per cent) against a cost (x); labels stand in the right margin, apart."""
    width, height, left, right, top, bottom = 400, 250, 40, 280, 28, 206
    xs, ys = [p.x for p in points], [v for p in points for v in (p.low, p.high)]
    log = min(xs) > 0 and max(xs) / min(xs) > 20
    along: Callable[[float], float] = math.log10 if log else float
    low_x, high_x = _padded([along(value) for value in xs], 0.1)
    low_y, high_y = _padded(ys)
    to_x, y = _linear(low_x, high_x, left, right), _linear(low_y, high_y, bottom, top)
    steps = [10.0**tick if log else tick for tick in ticks(low_x, high_x, 3)]
    grid = [_horizontal(y(tick), left, right, f"{tick:g}") for tick in ticks(low_y, high_y)]
    grid += [_vertical(to_x(along(tick)), top, bottom, unit(tick)) for tick in steps if tick >= 0]
    axis = element("text", x_title, x=(left + right) / 2, y=height - 8, class_="tick middle")
    heading = element("text", title, x=left, y=14, class_="heading")
    places = [(to_x(along(point.x)), y(point.y)) for point in points]
    heights = _apart([place[1] for place in places], 13, top, bottom)
    marks = [
        _scatter_mark(point, place, y, (right, h), unit)
        for point, place, h in zip(points, places, heights, strict=True)
    ]
    return _svg(width, height, f"{title} against {x_title}", heading, grid, axis, marks)


def _scatter_mark(
    point: Point,
    place: tuple[float, float],
    y: Scale,
    label: tuple[float, float],
    unit: Callable[[float], str],
) -> list[Safe]:
    (x, middle), (right, height) = place, label
    reach = f"M{x:.1f} {y(point.low):.1f}V{y(point.high):.1f}"
    tip = element("title", f"{point.label}: {point.y:.1f} at {unit(point.x)}")
    return [
        element(
            "path", d=f"M{x + 6:.1f} {middle:.1f}L{right + 8:.1f} {height:.1f}", class_="leader"
        ),
        element("path", d=reach, class_=f"seed {_tone(point.series)}"),
        element("g", tip, marker(x, middle, point.series)),
        element("text", _short(point.label, 16), x=right + 12, y=height + 4),
    ]


def curves(
    title: str, curves_: Sequence[Curve], x_title: str = "step", small: bool = False
) -> Safe:
    """Mean curves with a band from the lowest to the highest seed; names at the right end."""
    width, height, left, top = (240, 150, 50, 26) if small else (400, 250, 50, 28)
    right, bottom = width - (10 if small else 120), height - 34
    xs = [value for curve in curves_ for value in curve.x]
    low_y, high_y = _padded([v for curve in curves_ for v in (*curve.low, *curve.high)], 0.05)
    x, y = _linear(min(xs), max(xs), left, right), _linear(low_y, high_y, bottom, top)
    grid = [_horizontal(y(t), left, right, f"{t:.4g}") for t in ticks(low_y, high_y, 3)]
    grid += [_vertical(x(t), top, bottom, count(t)) for t in ticks(min(xs), max(xs), 3)]
    drawn = [_curve(curve, x, y) for curve in curves_]
    names = None if small else _names(curves_, y, right, top, bottom)
    axis = element("text", x_title, x=(left + right) / 2, y=height - 3, class_="tick middle")
    heading = element("text", _short(title, 23 if small else 60), x=left, y=14, class_="heading")
    return _svg(width, height, title, heading, grid, axis, drawn, names)


def _curve(curve: Curve, x: Scale, y: Scale) -> list[Safe]:
    tone = _tone(curve.series)
    upper = [f"{x(a):.1f} {y(b):.1f}" for a, b in zip(curve.x, curve.high, strict=True)]
    lower = [f"{x(a):.1f} {y(b):.1f}" for a, b in zip(curve.x, curve.low, strict=True)]
    line = [f"{x(a):.1f} {y(b):.1f}" for a, b in zip(curve.x, curve.mean, strict=True)]
    band = element("path", d="M" + "L".join([*upper, *lower[::-1]]) + "Z", class_=f"band {tone}")
    drawn = {"class_": f"line {tone}", "stroke_dasharray": dash(curve.series)}
    path = element("path", d="M" + "L".join(line), **drawn)
    return [band if curve.low != curve.high else Safe(""), path]


def _names(items: Sequence[Curve], y: Scale, right: float, top: float, bottom: float) -> list[Safe]:
    heights = _apart([y(curve.mean[-1]) for curve in items], 13, top, bottom)
    return [
        part
        for curve, h in zip(items, heights, strict=True)
        for part in (
            marker(right + 10, h, curve.series, 3.5),
            element("text", _short(curve.label, 15), x=right + 19, y=h + 4),
        )
    ]


def _apart(wanted: Sequence[float], gap: float, top: float, bottom: float) -> list[float]:
    """Heights near the wanted ones, at least `gap` apart, from `top` on down."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    found = list(wanted)
    last = top - gap
    for index in order:
        last = found[index] = max(wanted[index], last + gap)
    ceiling = bottom
    for index in reversed(order):
        found[index] = min(found[index], ceiling)
        ceiling = found[index] - gap
    return found


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
