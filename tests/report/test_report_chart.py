"""Charts: series are told apart by more than colour, in figures and legend alike."""

from __future__ import annotations

import itertools
import re

from harness.report import chart


def features(series: int) -> tuple[str, str, str]:
    """Colour, dash and marker of a series as its legend draws them."""
    drawn = chart.swatch(series)
    [colour] = set(re.findall(r"\bs\d\b", drawn))
    [line] = re.findall(r"<path[^>]*>", drawn)
    [marker] = re.findall(r"<(?:circle|polygon)[^>]*>", drawn)
    return colour, "".join(re.findall('dasharray="[^"]*"', line)), re.sub(r"\bs\d\b", "", marker)


def test_no_two_series_share_two_of_colour_dash_and_marker() -> None:
    found = [features(series) for series in range(32)]
    for one, other in itertools.combinations(found, 2):
        assert sum(a == b for a, b in zip(one, other, strict=True)) <= 1
    assert [len(set(each)) for each in zip(*found, strict=True)] == [8, 8, 8]
    assert len({features(series) for series in range(64)}) == 64


def test_a_curve_has_the_dash_of_its_legend() -> None:
    x = (0.0, 1.0)
    for series in (1, 9, 30):
        drawn = chart.curves("loss", [chart.Curve("row", series, x, x, x, x)])
        assert features(series)[1] in drawn
        assert f'class="line {features(series)[0]}"' in drawn
