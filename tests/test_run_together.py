"""`harness run --together`: which stages share a job, and that their results do not show it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from command_line import harness
from kill_trials import lines
from milan_rows import ROWS
from safetensors.torch import load_file

from harness.plan import Plan, make_plan
from harness.reconcile import decide
from harness.store import Store
from harness.study import load_scale, load_study
from harness.submit import in_order
from harness.together import group_keys

STUDY = 'scale = "tiny"\nevals = ["linear"]\nseeds = [0]\n' + ROWS + '[[rows]]\nmethod = "mae"\n'


def plan_of(study: str, scale: str = "mini") -> Plan:
    return make_plan(load_study(study), load_scale(scale), ())


def by_job(plan: Plan, store: Path, jobs: int = 1) -> list[set[str]]:
    """The labels of the pretrainings of each job, in the order of submission."""
    decisions = decide(Store(store).create(), plan, {})
    found = in_order(decisions, group_keys(plan), jobs)
    pretrained = [{x.stage.label for x in each if x.stage.kind == "pretrain"} for each in found]
    return [labels for labels in pretrained if labels]


def test_rows_of_one_seed_that_see_the_same_images_share_a_job(tmp_path: Path) -> None:
    plan = plan_of("milan")
    one = by_job(plan, tmp_path)
    assert sorted(map(len, one)) == [2, 7]  # those without a teacher need not wait for one
    assert {"milan-1-baseline-s0", "milan-3-prompting-s0"} in one
    assert sorted(map(len, by_job(plan, tmp_path, jobs=2))) == [1, 1, 3, 4]


def test_seeds_and_other_augmentations_stay_apart(tmp_path: Path) -> None:
    jobs = by_job(plan_of("precision"), tmp_path)
    # Five seeds, and two precisions: bf16 and fp32 do not share a teacher's output.
    assert [len(each) for each in jobs] == [1] * 10


@pytest.mark.parametrize("study", ["milan", "comparison", "beitv2", "maskdistill"])
def test_what_a_job_needs_is_submitted_before_it(study: str, tmp_path: Path) -> None:
    plan = plan_of(study)
    decisions = decide(Store(tmp_path).create(), plan, {})
    jobs = list(in_order(decisions, group_keys(plan)))
    keys = [each.stage.key for members in jobs for each in members]
    assert sorted(keys) == sorted(plan.stages)
    at = {each.stage.key: place for place, members in enumerate(jobs) for each in members}
    for key, stage in plan.stages.items():
        assert all(at[needed.key] < at[key] for needed in stage.needs.values())


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the study, run row by row in `alone` and in one job in `together`."""
    root = tmp_path_factory.mktemp("stores")
    (root / "rows.toml").write_text(STUDY)
    for name, more in (("alone", ()), ("together", ("--together", "--jobs", "1"))):
        harness("run", "--study", "rows.toml", "--store", name, *more, cwd=root)
    yield root


def stages(store: Path) -> dict[str, Path]:
    return {f"{each.parent.name}/{each.name}": each for each in Store(store).folders()}


def assert_equal(store: Path, expected: Path) -> None:
    found, wanted = stages(store), stages(expected)
    assert found.keys() == wanted.keys() and len(wanted) == 9
    for name, folder in wanted.items():
        outcomes = [Store(store).outcome(found[name]), Store(expected).outcome(folder)]
        assert outcomes[0] and outcomes[1] and outcomes[0].done and outcomes[1].done, name
        assert outcomes[0].metrics == outcomes[1].metrics, name
        assert lines(found[name]) == lines(folder), name
        if (folder / "encoder.safetensors").exists():
            one, two = (load_file(each / "encoder.safetensors") for each in (found[name], folder))
            assert all(one[key].equal(item) for key, item in two.items()), name
            operations = [outcome.cost["gflops"] for outcome in outcomes if outcome]
            assert operations[0] == operations[1], name


def test_the_results_are_those_of_each_row_alone(stores: Path) -> None:
    assert_equal(stores / "together", stores / "alone")


def test_each_row_keeps_its_own_attempt_of_one_job(stores: Path) -> None:
    store = Store(stores / "together")
    rows = [each for name, each in stages(stores / "together").items() if "pretrain/milan" in name]
    attempts = [store.attempts(each)[0] for each in rows]
    assert len(rows) == 3 and len({each["job_id"] for each in attempts}) == 1
    (host,) = [each for each in attempts if "together" in each]
    assert {each.get("beside") for each in attempts} == {None, host["attempt"]}
    for row in rows:
        outcome = store.outcome(row)
        assert outcome is not None and outcome.attempt == store.attempts(row)[0]["attempt"]
        told = harness("logs", row.name, "--store", "together", cwd=stores).stdout
        assert f"job_id={host['job_id'].partition('.')[0]}" in told
    times = [float(store.outcome(row).cost["seconds"]) for row in rows]  # type: ignore[union-attr]
    assert max(times) < sum(times)


def test_a_dry_run_names_who_shares_a_job(stores: Path) -> None:
    words = ("run", "--study", "rows.toml", "--store", "new", "--together", "--dry-run")
    told = harness(*words, "--jobs", "1", cwd=stores).stdout
    (line,) = [line for line in told.splitlines() if line.startswith("one job for")]
    assert line.count("pretrain/milan") == 3 and "mae" not in line
    assert "one job for" not in harness(*words[:-2], "--dry-run", cwd=stores).stdout


def test_a_killed_job_goes_on_in_the_middle(stores: Path) -> None:
    """SIGKILL while all rows train; the next command has them draw level and end alike."""
    words = ["run", "--study", "rows.toml", "--store", "killed", "--together", "--jobs", "1"]
    command = [sys.executable, "-m", "harness.cli", *words]
    with (stores / "told").open("wb") as told:
        driver = subprocess.Popen(command, cwd=stores, stdout=told, stderr=told)
    until, job = time.monotonic() + 200, 0
    while not job and driver.poll() is None and time.monotonic() < until:
        rows = [each for name, each in killed(stores).items() if "pretrain/milan" in name]
        if len(rows) == 3 and all(lines(each) for each in rows):
            job = int(str(Store(stores / "killed").attempts(rows[0])[0]["job_id"]).split(".")[0])
            with suppress(ProcessLookupError):
                os.kill(job, signal.SIGKILL)
        time.sleep(0.01)
    assert job, (stores / "told").read_text()
    assert driver.wait(300) == 1, (stores / "told").read_text()
    harness(*words, cwd=stores)
    assert_equal(stores / "killed", stores / "alone")


def killed(root: Path) -> dict[str, Path]:
    try:
        return stages(root / "killed")
    except OSError:
        return {}


def test_time_is_each_rows_own(stores: Path) -> None:
    """The rows' times in the log do not overlap: lines of one update come one after the other."""
    rows = [each for name, each in stages(stores / "together").items() if "pretrain/milan" in name]
    times = []
    for row in rows:
        text = (row / "metrics.jsonl").read_text().splitlines()
        times.append({entry["step"]: entry["time"] for entry in map(json.loads, text)})
    steps = sorted(set.intersection(*(set(each) for each in times)))
    for now, later in pairwise(steps):
        assert max(each[now] for each in times) <= min(each[later] for each in times)
