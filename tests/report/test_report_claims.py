"""Claims: intervals by hand, verdicts, what is missing, and every format."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from report_stores import NAN, Row, make_store

import harness
from harness.claim import Claim
from harness.report import StoreSource, build, render, write
from harness.report.build import Report
from harness.report.claims import verdict
from harness.report.paired import effect
from harness.report.table import Table

MILESTONES = {"linear@25": (50.0, 51.0, 52.0), "linear@50": (55.0, 56.0, 57.0)}
ROWS = [
    Row("milan", (60.0, 62.0, 64.0), milestones=MILESTONES, gflops=48.0),
    Row(
        "milan",
        (50.0, 51.0, 55.0),
        variant="pixels",
        changed={"objectives.0.target": "pixels"},
        milestones={"linear@25": (40.0, 40.0, 40.0), "linear@50": (45.0, 45.0, 45.0)},
        gflops=36.0,
    ),
    Row("milan", (55.0, 57.0, 58.5), variant="SLIP", changed={"t": "slip"}, teacher="slip"),
    Row("beitv2", (40.0, "missing", NAN)),
    Row("mae", (NAN,) * 3),
]


def claim(treatment: str = "milan", control: str = "milan pixels", **fields: Any) -> dict[str, Any]:
    return {"sentence": "A beats B", "treatment": treatment, "control": control, **fields}


def store(root: Path, *claims: dict[str, Any], **about: Any) -> Path:
    zero_shot = {"clip": 0.70, "slip": 0.60}
    return make_store(root, ROWS, name="claims", claims=claims, **{"zero_shot": zero_shot, **about})


def report(root: Path) -> Report:
    return build(StoreSource(root), "claims")


def line(table: Table, number: int = 0) -> dict[str, str]:
    names = [column.name for column in table.columns]
    return dict(zip(names, (cell.text for cell in table.lines[number].cells), strict=True))


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    # Differences 10, 11, 9: mean 10, standard deviation 1; t(0.975, 2) = 4.302653.
    found = effect({0: 60.0, 1: 62.0, 2: 64.0, 7: 1.0}, {0: 50.0, 1: 51.0, 2: 55.0, 8: 9.0})
    assert found is not None and found.differences == (10.0, 11.0, 9.0)
    assert found.low == pytest.approx(10 - 4.302653 / math.sqrt(3), abs=1e-5)
    assert found.high == pytest.approx(10 + 4.302653 / math.sqrt(3), abs=1e-5)
    # Five seeds: t(0.975, 4) = 2.776445; differences 1..5 have a standard deviation of sqrt(2.5).
    five = effect(dict(enumerate((1.0, 2.0, 3.0, 4.0, 5.0))), dict.fromkeys(range(5), 0.0))
    assert five is not None
    assert five.high == pytest.approx(3 + 2.776445 * math.sqrt(2.5 / 5), abs=1e-5)
    alone = effect({0: 2.0}, {0: 1.0})
    assert alone is not None and (alone.mean, alone.low, alone.high) == (1.0, None, None)
    assert effect({0: 2.0}, {1: 1.0}) is None


@pytest.mark.parametrize(
    ("expect", "margin", "low", "high", "word"),
    [
        ("higher", 0.0, 0.1, 3.0, "supported"),
        ("higher", 0.0, -0.1, 3.0, "undecided"),
        ("higher", 0.0, -3.0, -0.1, "not supported"),
        ("higher", 0.0, 0.0, 0.0, "undecided"),
        ("lower", 0.0, -3.0, -0.1, "supported"),
        ("lower", 0.0, -3.0, 0.1, "undecided"),
        ("lower", 0.0, 0.1, 3.0, "not supported"),
        ("no lower", 2.0, -1.9, 0.5, "supported"),
        ("no lower", 2.0, -2.1, 0.5, "undecided"),
        ("no lower", 2.0, -5.0, -2.1, "not supported"),
    ],
)
def test_verdicts(expect: Any, margin: float, low: float, high: float, word: str) -> None:
    assert verdict(Claim("s", "a", "b", expect=expect, margin=margin), low, high) == word


def test_a_line_tells_effect_interval_seeds_and_compute(tmp_path: Path) -> None:
    table = report(store(tmp_path, claim(source="a paper"))).tables[0]
    assert line(table) == {
        "claim": "A beats B",
        "source": "a paper",
        "compared": "milan − milan pixels",
        "measure": "lin",
        "effect": "+10.0",
        "low": "+7.5",
        "high": "+12.5",
        "seeds": "3",
        "verdict": "supported",
        "compute": "+33.3 %",
    }
    notes = {cell.text: cell.note for cell in table.lines[0].cells}
    assert notes["+10.0"] == "by seed: +10.0, +11.0, +9.0"
    assert notes["+33.3 %"] == (
        "0.002 against 0.0015 GFLOP an image; 60 s against 60 s of pretraining"
    )


def test_operations_are_compared_an_image(tmp_path: Path) -> None:
    dearer, cheaper = claim(metric="gflops"), claim(metric="gflops", expect="lower")
    table = report(store(tmp_path, dearer, cheaper)).tables[0]
    assert line(table)["effect"] == "+0.0005" and line(table)["measure"] == "GFLOP an image"
    assert [line(table, number)["verdict"] for number in (0, 1)] == ["supported", "not supported"]


def test_what_is_missing_is_said_and_gets_no_verdict(tmp_path: Path) -> None:
    pairs = ("beitv2", "milan"), ("mae", "milan"), ("milan", "cae"), ("milan", "beitv2")
    table = report(store(tmp_path, *(claim(*pair) for pair in pairs))).tables[0]
    half, failed, absent, reverse = (line(table, number) for number in range(4))
    # One of three seeds has a number, one is still to come, one failed: no verdict yet.
    assert half["effect"] == "−20.0" and half["seeds"] == "1" and half["low"] == "one seed"
    assert half["verdict"] == reverse["verdict"] == "pending"
    assert failed["effect"] == failed["verdict"] == "failed (nan)"
    assert absent["effect"] == absent["verdict"] == absent["compute"] == "not run"
    assert all(cell.text.strip() for row in table.lines for cell in row.cells)


def test_a_seed_that_failed_for_good_is_named_beside_the_verdict(tmp_path: Path) -> None:
    rows = [Row("milan", (60.0, 62.0, NAN)), Row("mae", (50.0, 51.0, 52.0))]
    root = make_store(tmp_path, rows, name="claims", claims=[claim(control="mae")])
    found = line(report(root).tables[0])
    assert (found["seeds"], found["verdict"]) == ("2", "supported (failed (nan))")


@pytest.mark.parametrize(
    ("zero_shot", "compared", "word"),
    [
        # Milan is above SLIP by 5, 5 and 5.5. Teachers must differ by 0.029 to be told apart.
        ({"clip": 0.70, "slip": 0.60}, "milan − milan SLIP", "supported"),
        ({"clip": 0.60, "slip": 0.70}, "milan SLIP − milan", "not supported"),
        ({"clip": 0.70, "slip": 0.69}, "milan − milan SLIP", "undecided"),
    ],
)
def test_the_better_teacher_decides_the_order(
    zero_shot: dict[str, float], compared: str, word: str, tmp_path: Path
) -> None:
    root = store(tmp_path, claim(control="milan SLIP", better_teacher=True), zero_shot=zero_shot)
    table = report(root).tables[0]
    found = line(table)
    assert (found["compared"], found["verdict"]) == (compared, word)
    assert any(f"{100 * zero_shot['clip']:.1f} (milan)" in note for note in table.notes)


def test_convergence_is_the_treatments_milestone_against_the_controls_end(tmp_path: Path) -> None:
    found = report(store(tmp_path, claim(at=0.5)))
    # 55 − 50, 56 − 51, 57 − 55: mean 4, standard deviation sqrt(3).
    shown = line(found.tables[0])
    assert (shown["measure"], shown["effect"]) == ("lin at 50 %", "+4.0")
    assert (shown["low"], shown["verdict"]) == ("−0.3", "undecided")
    table = found.tables[1]
    assert table.name == "convergence"
    assert [column.title for column in table.columns] == ["Row", "25 %", "50 %", "100 %", "mean"]
    assert [row.cells[0].text for row in table.lines] == [
        "milan",
        "milan pixels",
        "milan − milan pixels",
    ]
    assert line(table, 0)["lin_50"] == "56.0 ± 1.0"
    assert line(table, 0)["mean"] == "56.3 ± 1.3"  # of (50 + 55 + 60) / 3 and so on
    assert line(table, 2)["lin_50"] == "+11.0 (+8.5 to +13.5)"


def test_milestones_are_records_and_leave_the_comparison_alone(tmp_path: Path) -> None:
    found = report(store(tmp_path, claim()))
    assert [table.name for table in found.tables] == [
        "claims",
        "convergence",
        "comparison",
        "ablation-milan",
    ]
    assert {each["eval"] for each in found.records} == {"linear", "linear@25", "linear@50"}
    assert sum(each["eval"] == "linear@25" for each in found.records) == 6
    assert line(found.tables[2])["lin"] == "62.0 ± 2.0"


def test_every_format_has_the_claims(tmp_path: Path) -> None:
    source = StoreSource(store(tmp_path / "runs", claim(), claim(at=0.5), claim("milan", "mae")))
    assert "| A beats B |" in render(source, "claims", format="md")
    assert r"milan pixels" in render(source, "claims", format="latex")
    assert "supported" in render(source, "claims", format="terminal")
    title, _, text = render(source, "claims", format="csv").partition("\n")
    [first, *_] = csv.DictReader(io.StringIO(text))
    assert title == "# claims"
    assert float(first["effect"]) == 10 and first["verdict"] == "supported"
    assert float(first["low"]) == pytest.approx(7.5159, abs=1e-4)
    plain = json.loads(render(source, "claims", format="json"))
    assert plain["tables"][0]["name"] == "claims"
    page = render(source, "claims", format="html")
    assert 'id="claims"' in page and "Linear probe along the schedule" in page
    names = {path.name for path in write(source, "claims", None, None, tmp_path / "out")}
    assert names >= {f"claims-mini.{end}" for end in ("md", "csv", "json", "tex", "html")}
    assert names >= {"claims-mini-convergence.csv", "claims-mini-comparison.csv"}


def test_notebooks_have_them_as_frames(tmp_path: Path) -> None:
    study = harness.load("claims", store=str(store(tmp_path, claim())))
    assert study.claims()["effect"].tolist() == [10.0]
    assert study.table()["lin"].tolist()[0] == 62.0


def test_the_report_needs_no_torch(tmp_path: Path) -> None:
    root = store(tmp_path, claim())
    code = (
        "import sys; from harness.cli import main; "
        f"sys.argv = ['harness', 'report', '--study', 'claims', '--store', {str(root)!r}]; "
        "code = main(); assert 'torch' not in sys.modules and 'scipy.stats' not in sys.modules; "
        "sys.exit(code)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "supported" in ran.stdout
