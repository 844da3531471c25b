"""The tables: what a cell says, what is marked, what is compared with what."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from report_stores import Row, key_of, make_store

import harness
from harness.report import StoreSource, build, numbers
from harness.report.build import Report
from harness.report.numbers import Summary
from harness.report.records import FIELDS
from harness.report.table import Table
from methods.errors import InputError


def report(root: Path, study: str = "comparison") -> Report:
    return build(StoreSource(root), study)


def texts(table: Table, column: str) -> dict[str, str]:
    """The cells of one column by their row's first cell."""
    index = [each.name for each in table.columns].index(column)
    return {line.cells[0].text: line.cells[index].text for line in table.lines}


def marks(table: Table, column: str) -> dict[str, str]:
    index = [each.name for each in table.columns].index(column)
    return {line.cells[0].text: line.cells[index].mark for line in table.lines}


def test_every_missing_cell_says_why(small: Path) -> None:
    table = report(small).tables[0]
    assert texts(table, "lin") == {
        "milan": "66.4 ± 0.4",
        "beitv2": "61.2 ± 0.3",
        "maskdistill": "not run (pretrain failed: nan)",
        "mae": "51.3 ± 0.4",
        "random": "39.9 ± 0.1",
        "scratch": "not run",
    }
    assert texts(table, "ft")["beitv2"] == "72.5 (1 of 2)"
    assert texts(table, "ft")["mae"] == "failed (memory)"
    assert texts(table, "seg")["beitv2"] == "pending; running"
    for line in table.lines:
        assert all(cell.text.strip() for cell in line.cells)
        assert all(cell.text != "0.0" for cell in line.cells)


def test_records_have_every_field_and_their_reason(small: Path) -> None:
    found = report(small)
    assert len(found.records) == 12 * 3
    assert all(tuple(each) == FIELDS for each in found.records)
    states = {(r["method"], r["eval"]): r["state"] for r in found.records if r["seed"] == 0}
    assert states["maskdistill", "linear"] == "blocked"
    assert states["random", "finetune"] == "absent"
    blocked = next(r for r in found.records if r["state"] == "blocked")
    assert blocked["reason"] == "pretrain failed: nan: loss is NaN at step 210"
    pretrain = key_of("pretrain", "maskdistill", "", 0)
    assert blocked["command"] == f"harness run --scale mini --retry {pretrain}"
    pending = next(r for r in found.records if r["state"] == "missing")
    assert pending["command"] == "harness run --scale mini"


def test_a_done_stage_without_its_metric_is_a_failure(small: Path, tmp_path: Path) -> None:
    root = make_store(tmp_path / "runs", [Row("mae", (50.0,))])
    path = next((root / "linear").glob("*/outcome.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "metrics": {"loss": 1.0}}))
    record = report(root).records[0]
    assert (record["state"], record["reason"]) == ("failed", "outcome.json has no top1")


def test_best_and_second_are_marked_beyond_the_noise(small: Path) -> None:
    table = report(small).tables[0]
    assert marks(table, "lin") == {
        "milan": "best",
        "beitv2": "second",
        "maskdistill": "",
        "mae": "",
        "random": "",
        "scratch": "",
    }
    # beitv2's fine-tuning has one seed: it can neither win nor be beaten for sure.
    assert set(marks(table, "ft").values()) == {""}
    assert marks(table, "seg")["milan"] == "best"


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (
            [Summary(80.0, 0.1, 3), Summary(79.0, 0.1, 3), Summary(70, 0.1, 3)],
            ["best", "second", ""],
        ),
        ([Summary(79.0, 0.1, 3), Summary(80.0, 0.1, 3)], ["", "best"]),
        ([Summary(80.0, 1.5, 3), Summary(79.0, 0.5, 3), Summary(70, 0.1, 3)], ["", "", ""]),
        ([Summary(80.0, None, 1), Summary(70.0, 0.1, 3)], ["", ""]),
        ([Summary(80.0, 0.0, 2), Summary(79.95, 0.0, 2)], ["", ""]),
        ([Summary(80.0, 0.1, 3), None], ["", ""]),
        ([None, None], ["", ""]),
        ([], []),
    ],
)
def test_the_noise_rule(column: list[Summary | None], expected: list[str]) -> None:
    assert numbers.marks(column) == expected


def test_mini_rows_get_no_difference(small: Path) -> None:
    table = report(small).tables[0]
    assert not [each.name for each in table.columns if each.group == "difference"]
    assert "not comparable" in table.banner and "mini" in table.banner
    assert texts(table, "published_lin")["milan"] == "79.9†"
    assert texts(table, "published_lin")["random"] == "–"


def test_paper_rows_are_compared_at_equal_epochs_only(paper: Path) -> None:
    table = report(paper).tables[0]
    assert table.banner == ""
    assert texts(table, "delta_lin") == {
        "milan": "−0.4",
        "beitv2": "−0.1",
        "maskdistill": "–",
        "mae": "+0.4",
    }
    # MaskDistill ran for 100 epochs: the published 800-epoch row is shown, and no difference.
    assert texts(table, "published_epochs")["maskdistill"] == "800"
    assert texts(table, "delta_ft")["maskdistill"] == "–"
    assert texts(table, "delta_seg")["mae"] == "–"
    assert any("n = 1" in note for note in table.notes)


def test_an_ablation_shows_what_changed_and_by_how_much(ablation: Path) -> None:
    found = report(ablation, "milan-ablation")
    assert [each.name for each in found.tables] == ["comparison", "ablation-milan"]
    table = found.tables[1]
    assert [line.role for line in table.lines] == ["default", "", ""]
    assert texts(table, "changed") == {
        "default": "–",
        "decoder 4": "decoder.depth: 8 → 4",
        "mse": "objectives.0.loss: cosine → mse",
    }
    assert texts(table, "lin") == {
        "default": "66.5 ± 0.7",
        "decoder 4": "−5.6 ± 0.1",
        "mse": "−14.3 ± 0.4",
    }
    assert texts(table, "ft")["decoder 4"] == "−0.1 ± 0.2 ≈"
    assert texts(table, "seg") == {
        "default": "38.2 ± 0.3",
        "decoder 4": "−1.0 (n=1)",
        "mse": "not run",
    }
    notes = {cell.text: cell.note for line in table.lines for cell in line.cells}
    assert notes["−14.3 ± 0.4"] == "52.2 ± 0.3, clear"
    assert notes["−0.1 ± 0.2 ≈"] == "74.2 ± 0.1, within the noise"
    assert notes["−1.0 (n=1)"] == "37.0 (1 of 2), one seed cannot tell the noise"
    # A published number is of the method as it is defined, not of a variant.
    index = [each.name for each in found.tables[0].columns].index("published_lin")
    assert [line.cells[index].text for line in found.tables[0].lines] == ["79.9†", "–", "–"]


def test_data_frames_for_notebooks(small: Path) -> None:
    results = harness.load("comparison", store=small)
    table, runs = results.table(), results.runs()
    milan = table[table["method"] == "milan"].iloc[0]
    assert milan["lin"] == pytest.approx(66.4)
    assert milan["lin_std"] == pytest.approx(0.4243, abs=1e-3)
    assert (milan["lin_n"], milan["lin_state"]) == (2, "done")
    blocked = table[table["method"] == "maskdistill"].iloc[0]
    assert math.isnan(blocked["lin"])
    assert blocked["lin_state"] == "not run (pretrain failed: nan)"
    assert tuple(runs.columns) == FIELDS
    assert runs["value"].notna().sum() == sum(runs["state"] == "done")
    assert "milan" in str(results)
    assert repr(results) == "<Results of comparison (mini): 6 rows; comparison>"


def test_an_ablation_as_data_frame(ablation: Path) -> None:
    results = harness.load("milan-ablation", store=ablation)
    assert list(results.ablation("milan")["variant"]) == ["default", "decoder 4", "mse"]
    with pytest.raises(KeyError):
        results.ablation("mae")


def test_bad_input_is_named(small: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no study 'comparisn'.*did you mean 'comparison'"):
        harness.load("comparisn", store=small)
    with pytest.raises(InputError, match="choose a --scale of mini"):
        harness.load("comparison", store=small, scale="paper")
    with pytest.raises(InputError, match="no study"):
        harness.load("comparison", store=tmp_path / "nothing")
    root = make_store(tmp_path / "runs", [Row("mae", (50.0,))])
    next((root / "linear").glob("*/outcome.json")).write_text("{ half")
    with pytest.raises(InputError, match=r"outcome\.json: cannot be read as JSON"):
        harness.load("comparison", store=root)
    (root / "studies" / "comparison.json").write_text('{"study": {"scale": "mini"}, "rows": [{}]}')
    with pytest.raises(InputError, match=r"comparison\.json\.stages: missing"):
        harness.load("comparison", store=root)


def test_a_study_of_another_scale_is_found(tmp_path: Path) -> None:
    root = make_store(tmp_path / "runs", [Row("mae", (50.0,))], scale="tiny")
    studies = root / "studies"
    (studies / "comparison.json").rename(studies / "comparison-tiny.json")
    for scale in (None, "tiny"):
        assert build(StoreSource(root), "comparison", scale).study["scale"] == "tiny"
    make_store(tmp_path / "more" / "runs", [Row("mae", (50.0,))])
    (tmp_path / "more/runs/studies/comparison.json").rename(studies / "comparison.json")
    assert build(StoreSource(root), "comparison").study["scale"] == "mini"
    with pytest.raises(InputError, match="choose a --scale of mini, tiny"):
        build(StoreSource(root), "comparison", "paper")


def test_a_report_imports_neither_torch_nor_mlflow(small: Path) -> None:
    script = (
        "import sys, harness\n"
        "assert 'pandas' not in sys.modules\n"
        f"harness.load('comparison', store={str(small)!r}).table()\n"
        "found = {'torch', 'mlflow', 'timm', 'submitit'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)


class Thousands:
    """A study of 10,000 stages in memory, so that only the report's own work is timed."""

    def plan(self, study: str, scale: str | None = None) -> dict[str, Any]:
        kinds = ("pretrain", "linear", "finetune", "segmentation")
        rows = [
            {
                "method": "milan",
                "variant": f"v{index // 3}",
                "seed": index % 3,
                "label": f"milan-v{index}",
                "changed": {"decoder.depth": index // 3},
                "stages": {kind: f"{kind}{index}" for kind in kinds},
            }
            for index in range(2500)
        ]
        stages = {key: {"kind": kind} for row in rows for kind, key in row["stages"].items()}
        return {"study": {"name": study, "scale": "mini"}, "rows": rows, "stages": stages}

    def outcome(self, key: str) -> dict[str, Any]:
        metrics = {"top1": 50.0, "mIoU": 30.0}
        return {"state": "done", "metrics": metrics, "cost": {"seconds": 1.0}}

    def stage(self, key: str) -> dict[str, Any]:
        return {}

    def history(self, key: str) -> list[dict[str, Any]]:
        return []

    def pictures(self, key: str) -> dict[str, bytes]:
        return {}


def test_ten_thousand_stages_are_no_burden() -> None:
    start = time.process_time()
    assert len(build(Thousands(), "comparison").tables[0].lines) == 834
    assert (
        time.process_time() - start < 15
    )  # well under a second alone; a limit against quadratic work only
