"""The bench of the harness itself: made studies are whole, and growing ones cost in proportion."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.bench import driver
from harness.bench.table import read
from harness.cli import main
from harness.plan import make_plan
from harness.reconcile import about_stage
from harness.study import load_scale, load_study
from methods.errors import InputError


def test_a_made_study_has_nothing_left_to_do(tmp_path: Path) -> None:
    plan = driver.made_study(tmp_path / "made", load_study("comparison"))
    found = driver.command(tmp_path, "run", "made", "comparison")
    assert found["stages"] == len(plan.stages) == 21
    assert found["processor_seconds"] > 0 and 20 < found["memory_mb"] < 500
    assert not list(tmp_path.glob("made/*/*/attempts"))  # nothing was begun
    lines = (tmp_path / "made").glob("*/*/metrics.jsonl")
    assert {len(path.read_text().splitlines()) for path in lines} == {driver.LINES}


def test_a_command_that_fails_is_told(tmp_path: Path) -> None:
    driver.made_study(tmp_path / "made", driver.many(12))
    with pytest.raises(RuntimeError, match=r"report .*no study"):
        driver.command(tmp_path, "report", "made", "another")


def seconds(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def test_planning_is_linear() -> None:
    """A row of a study costs as much among 2000 stages as among 200, but for noise."""

    def planned(stages: int) -> None:
        plan = make_plan(driver.many(stages), load_scale("mini"))
        for stage in plan.stages.values():
            about_stage(plan, stage, {})

    planned(8)
    few = min(seconds(lambda: planned(200)) for _ in range(3))
    assert seconds(lambda: planned(2000)) < 25 * few


@pytest.mark.parametrize("words", ["x", "", "100,10", "2", "8,8"])
def test_sizes_are_rising_numbers(words: str) -> None:
    with pytest.raises(InputError, match="--driver"):
        driver.numbers(words)


@pytest.mark.long
def test_the_command_prints_and_keeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "--driver", "12", "--format", "json", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows == read(tmp_path)
    names = [row["name"] for row in rows]
    assert names[0] == "plan of 12" and names[-1] == "sync of 8 x 5000 points to MLflow"
    assert "run of 21" in names and "report --format html of 12" in names
    assert "| plan of 12 | 12 |" in driver.render(rows)
