"""The comparison at the tiny scale, through the command line, from nothing to the table."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import harness

from harness.reconcile import failures
from harness.store import Store

MAE = ("run", "--scale", "tiny", "--methods", "mae", "--evals", "linear")


def states(folder: Path, *words: object) -> dict[str, str]:
    lines = harness("status", "--scale", "tiny", *words, cwd=folder).stdout.splitlines()
    return {
        found[1].rpartition("-")[0]: found[0]
        for found in map(str.split, lines)
        if "/" in found[1]  # below the stages stands what time they took
    }


def test_every_stage_is_done_and_every_cell_a_number(comparison: Path) -> None:
    assert set(states(comparison).values()) == {"done"}
    table = json.loads(
        harness("report", "--scale", "tiny", "--format", "json", cwd=comparison).stdout
    )
    runs = {(run["method"], run["eval"]): run for run in table["records"]}
    for method in ("milan", "beitv2", "maskdistill", "mae"):
        for kind in ("linear", "finetune", "segmentation"):
            assert 0 <= runs[method, kind]["value"] <= 100
    assert runs["random", "linear"]["value"] is not None
    assert runs["scratch", "segmentation"]["value"] is not None


def test_the_table_holds_published_numbers_and_says_that_the_scale_means_nothing(
    comparison: Path,
) -> None:
    text = harness("report", "--scale", "tiny", cwd=comparison).stdout
    row = next(line for line in text.splitlines() if line.startswith("| milan"))
    assert "85.4" in row and "52.7" in row
    assert "its numbers mean nothing" in text and "not run" in text


def test_a_second_run_submits_nothing(comparison: Path, data: Path) -> None:
    before = sorted((comparison / "runs").glob("*/*/attempts/*"))
    done = harness("run", "--scale", "tiny", "--data", data, cwd=comparison)
    assert done.stdout.strip() == "nothing to do: all 21 stages are done"
    assert sorted((comparison / "runs").glob("*/*/attempts/*")) == before


def test_a_store_may_be_moved(comparison: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    subprocess.run(["cp", "-r", comparison / "runs", moved], check=True)
    assert set(states(tmp_path, "--store", moved).values()) == {"done"}


def test_the_same_seed_gives_the_same_numbers(comparison: Path, data: Path, tmp_path: Path) -> None:
    harness(*MAE, "--data", data, cwd=tmp_path)
    for kind in ("pretrain", "linear"):
        (again,) = (tmp_path / "runs" / kind).glob("mae-*")
        first = comparison / "runs" / kind / again.name
        for store in (first, again):
            assert json.loads((store / "outcome.json").read_text())["status"] == "done"
        metrics = [json.loads((s / "outcome.json").read_text())["metrics"] for s in (first, again)]
        assert metrics[0] == metrics[1]
    weights = "encoder.safetensors"
    (again,) = (tmp_path / "runs/pretrain").glob("mae-*")
    first = comparison / "runs/pretrain" / again.name
    assert (first / weights).read_bytes() == (again / weights).read_bytes()


def test_a_failed_stage_blocks_only_what_needs_it(data: Path, tmp_path: Path) -> None:
    words = ("--scale", "tiny", "--methods", "milan,mae", "--evals", "linear")
    bad = ("--set", "teacher.minimum_zero_shot=1000.0")
    done = harness("run", *words, *bad, "--data", data, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "failed: teacher/clip" in done.stderr and "log: " in done.stderr
    found = states(tmp_path, *words[2:], *bad)
    assert found["teacher/clip"] == "missing" and found["pretrain/mae-s0"] == "done"
    assert found["linear/mae-s0"] == found["linear/random-s0"] == "done"
    (teacher,) = (tmp_path / "runs/teacher").iterdir()
    told = harness("why", teacher.name, cwd=tmp_path).stdout
    assert "failed: teacher:" in told and "what to do: " in told


def test_ctrl_c_stops_the_stages_and_the_same_command_goes_on(data: Path, tmp_path: Path) -> None:
    words = (*MAE, "--set", "optimisation.epochs=400", "--data", data)
    command = [sys.executable, "-m", "harness.cli", *map(str, words)]
    process = subprocess.Popen(
        command, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    metrics = wait_for_metrics(tmp_path)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 130 and "goes on from here" in told
    folder = metrics.parent
    assert not (folder / "outcome.json").exists() and any((folder / "state").iterdir())
    assert failures(folder) == 0
    stopped = [json.loads(path.read_text()) for path in folder.glob("attempts/*/job.json")]
    assert stopped[0]["stopped"]
    steps = len(metrics.read_text().splitlines())
    assert "goes on from its last checkpoint" in harness(*words, "--dry-run", cwd=tmp_path).stdout
    assert steps >= 1


def wait_for_metrics(folder: Path) -> Path:
    until = time.monotonic() + 300
    while time.monotonic() < until:
        for path in folder.glob("runs/pretrain/mae-*/metrics.jsonl"):
            if path.stat().st_size:
                return path
        time.sleep(0.05)
    raise AssertionError("no metrics were written")


def test_a_killed_stage_is_told_and_resumed(data: Path, tmp_path: Path) -> None:
    words = (*MAE, "--set", "optimisation.epochs=60", "--data", data)
    command = [sys.executable, "-m", "harness.cli", *map(str, words)]
    process = subprocess.Popen(command, cwd=tmp_path, text=True, stderr=subprocess.PIPE)
    metrics = wait_for_metrics(tmp_path)
    owner = json.loads((metrics.parent / "owner.json").read_text())
    os.kill(owner["pid"], signal.SIGKILL)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 1 and "ended without an outcome: signal 9, SIGKILL" in told
    harness(*words, cwd=tmp_path)
    outcome = Store(tmp_path / "runs").outcome(metrics.parent)
    assert outcome is not None and outcome.done and failures(metrics.parent) == 1
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 300


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("run", "--methods", "milam"), "did you mean 'milan'?"),
        (("run", "--evals", "linea"), "did you mean 'linear'?"),
        (("run", "--scale", "minni"), "did you mean 'mini'?"),
        (("run", "--study", "comparisom"), "did you mean 'comparison'?"),
        (("run", "--cluster", "loca"), "did you mean 'local'?"),
        (("run", "--seeds", "one"), "--seeds: 'one' is not a whole number"),
        (("run", "--jobs", "0"), "--jobs 0: must be at least 1"),
        (("run", "--store", "file/runs"), "--store file/runs: not writable"),
        (("run", "--scale", "paper"), "imagenet"),
        (("logs", "abc"), "no stage in runs is called 'abc'"),
        (("report", "--store", "nowhere"), "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    words: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    done = harness(*words, cwd=tmp_path, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert told in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: ")


def test_a_corrupt_stage_is_one_line(comparison: Path, tmp_path: Path) -> None:
    subprocess.run(["cp", "-r", comparison / "runs", tmp_path / "runs"], check=True)
    (stage,) = (tmp_path / "runs/pretrain").glob("mae-*")
    for name, text in (("outcome.json", "{"), ("outcome.json", "[1]"), ("stage.json", '{"a": 1}')):
        before = (stage / name).read_text()
        (stage / name).write_text(text)
        words = ("diff", stage.name, stage.name) if name == "stage.json" else ("status",)
        extra = ("--scale", "tiny") if words == ("status",) else ()
        done = harness(*words, *extra, cwd=tmp_path, check=False)
        assert done.returncode == 2 and f"{stage / name}".endswith(name)
        assert name in done.stderr and len(done.stderr.strip().splitlines()) == 1
        (stage / name).write_text(before)
