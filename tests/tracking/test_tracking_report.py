"""`harness report --source mlflow` beside the store's own report: not one byte differs."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tracking_servers import counts

from harness import tracking
from harness.report import FORMATS, StoreSource, render
from harness.report.figures import steps
from harness.store import Store
from harness.tracking.server import connect, own_uri
from methods.engine.pictures import Strip, write
from methods.errors import InputError

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
from report_stores import SMALL, curve, make_store

LOAD = {"system/process_cpu_percentage": 99.5, "system/process_memory_megabytes": 512.0}


def evaluated(number: int) -> list[dict[str, Any]]:
    """A curve whose last step has a second line, as that of a tokenizer with its evaluation."""
    lines = [{**each, **LOAD} for each in curve(number)]
    return [*lines, {"step": 19, "time": 2.0, "loss": number + 0.5, "perplexity": 60.0}]


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory, fresh_database: Path) -> Store:
    """A study with a cell of every state, pictures and curves of the machine, made level."""
    root = tmp_path_factory.mktemp("mirrored") / "runs"
    make_store(root, SMALL, history=evaluated)
    tiles = [np.full((8, 8, 4), 40 * number, np.uint8) for number in range(1, 5)]
    for folder in (root / "pretrain").glob("mi*-s0-*"):
        write(folder / "pictures", [Strip("1-images", "four shades of <grey>", tiles)])
    shutil.copy(fresh_database, root / "mlflow.db")
    store = Store(root)
    assert tracking.sync(store).error == ""
    return store


@pytest.mark.parametrize("format", FORMATS)
def test_the_report_is_the_same_from_mlflow_alone(mirrored: Store, format: str) -> None:
    source = tracking.MlflowSource(own_uri(mirrored.root))
    mine = render(source, "comparison", "mini", format)
    assert mine == render(StoreSource(mirrored.root), "comparison", "mini", format)
    if format == "html":
        assert "four shades of &lt;grey&gt;" in mine and "data:image/png;base64," in mine


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    source = tracking.MlflowSource(f"sqlite:///{tmp_path}/typo/mlflow.db")
    with pytest.raises(InputError, match="no such file"):
        render(source, "comparison")
    assert not (tmp_path / "typo").exists()


def test_what_the_machine_did_is_a_page_of_its_own(mirrored: Store) -> None:
    (folder,) = (mirrored.root / "teacher").iterdir()
    key = folder.name.rpartition("-")[2]
    source = tracking.MlflowSource(own_uri(mirrored.root))
    source.plan("comparison")
    assert source.history(key) == StoreSource(mirrored.root).history(key)
    assert source.history(key)[3]["system/process_cpu_percentage"] == 99.5


def test_of_a_step_with_two_lines_the_last_is_drawn(mirrored: Store) -> None:
    (folder,) = (mirrored.root / "teacher").iterdir()
    key = folder.name.rpartition("-")[2]
    mlflow = tracking.MlflowSource(own_uri(mirrored.root))
    mlflow.plan("comparison")
    for source in (mlflow, StoreSource(mirrored.root)):
        found, values = steps(source.history(key), "loss")
        assert found == list(range(20)) and values[-1] == evaluated(1)[-1]["loss"]


def test_the_report_is_a_file_of_the_first_row_once_the_study_rests(
    tmp_path: Path, fresh_database: Path
) -> None:
    done = [row for row in SMALL if row.method in ("milan", "random")]
    root = make_store(tmp_path / "runs", done, history=curve)
    shutil.copy(fresh_database, root / "mlflow.db")
    store, client = Store(root), connect(own_uri(root))
    owner = {"token": "t", "attempt": "a", "host": "elsewhere", "pid": 1}
    (folder,) = (root / "linear").glob("milan-s0-*")
    outcome = (folder / "outcome.json").read_text()
    (folder / "outcome.json").unlink()
    (folder / "owner.json").write_text(json.dumps(owner))
    assert tracking.sync(store).error == ""
    assert not [run for run in runs(client) if "report" in run.data.tags]

    (folder / "outcome.json").write_text(outcome)
    assert tracking.sync(store).error == ""
    (run,) = [run for run in runs(client) if "report" in run.data.tags]
    assert run.data.tags["label"] == "milan-s0" and run.data.tags["level"] == "row"
    page = Path(client.download_artifacts(run.info.run_id, "report.html", str(tmp_path)))
    assert page.read_text() == render(StoreSource(root), "comparison", "mini", "html")
    assert hashlib.sha256(page.read_bytes()).hexdigest() == run.data.tags["report"]
    (experiment,) = [each for each in client.search_experiments() if each.tags.get("harness")]
    assert "report.html" in experiment.tags["mlflow.note.content"]

    before = counts(root / "mlflow.db")
    assert tracking.sync(store).written == 0
    assert counts(root / "mlflow.db") == before


def runs(client: Any) -> list[Any]:
    experiments = [each.experiment_id for each in client.search_experiments()]
    return list(client.search_runs(experiments, max_results=1000))
