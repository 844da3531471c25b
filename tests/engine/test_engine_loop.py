"""The loop: accumulation, resuming bit for bit, NaN, and what it records."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_engine_checkpoint import flip_a_bit, largest_file
from tiny_training import IMAGES, lines, run

from methods.engine import checkpoint
from methods.engine.device import memory_errors
from methods.engine.health import check_attention
from methods.engine.work import Layout, Work, read_alarms
from methods.errors import StageError

HERE = Path(__file__).parent


def in_subprocess(**options: Any) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": f"{HERE.parents[1]}:{HERE}"}
    command = [sys.executable, str(HERE / "tiny_training.py"), json.dumps(options)]
    return subprocess.Popen(command, env=environment)


def assert_identical(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, item in expected.items():
        assert torch.equal(found[name], item), name


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("device_batch", [1, 3])
def test_accumulation_equals_the_whole_batch(
    tmp_path: Path, device_batch: int, weighted: bool
) -> None:
    whole, _ = run(tmp_path / "whole", dropout=0.0, weighted=weighted)
    cut, _ = run(tmp_path / "cut", dropout=0.0, weighted=weighted, device_batch=device_batch)
    for name, item in whole.items():
        torch.testing.assert_close(cut[name], item, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"optimizer": "lars", "clip": None}, {"precision": "bf16"},
                                     {"precision": "fp16"}])  # fmt: skip
@pytest.mark.parametrize("stop_at", [1, 5])
def test_resuming_repeats_an_uninterrupted_run(
    tmp_path: Path, stop_at: int, options: dict[str, Any]
) -> None:
    straight, _ = run(tmp_path / "straight", **options)
    with pytest.raises(StageError, match=f"preempted after update {stop_at}") as raised:
        run(tmp_path / "stopped", stop_at=stop_at, **options)
    assert raised.value.reason == "stopped"
    resumed, work = run(tmp_path / "stopped", **options)
    assert_identical(resumed, straight)
    assert lines(tmp_path / "stopped") == lines(tmp_path / "straight")
    assert work.report["resumed"] == 1 and work.report["redone_steps"] == 0
    assert work.report["steps"] == 12 and work.report["images"] == 96


def test_sums_between_two_lines_survive(tmp_path: Path) -> None:
    """250 updates make a line every third; the stop falls between two."""
    run(tmp_path / "straight", iterations=250)
    with pytest.raises(StageError):
        run(tmp_path / "stopped", iterations=250, stop_at=100)
    run(tmp_path / "stopped", iterations=250)
    found = lines(tmp_path / "stopped")
    assert found == lines(tmp_path / "straight")
    assert [line["step"] for line in found] == [*range(3, 250, 3), 250]
    assert found[-1]["progress"] == 1.0


def test_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk on which the first write takes until the next update has been made."""
    logged: list[int] = []
    sync = os.fsync

    def slow(handle: int) -> None:
        until = time.monotonic() + 30
        while not logged and len(lines(tmp_path)) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        logged.append(len(lines(tmp_path)))
        sync(handle)

    monkeypatch.setattr(os, "fsync", slow)
    run(tmp_path, checkpoint_seconds=0)
    assert logged[0] == 2
    steps = [checkpoint.step_of(path) for path in checkpoint.listed(tmp_path / "state")]
    assert steps == [12, 11]


def test_killed_before_a_save(tmp_path: Path) -> None:
    """SIGKILL after update 4 was logged and before it was saved: update 4 is done twice."""
    straight, _ = run(tmp_path / "straight")
    folder = tmp_path / "killed"
    killed = in_subprocess(folder=str(folder), checkpoint_seconds=0, kill_at_save=4)
    assert killed.wait(timeout=240) == -signal.SIGKILL
    assert [line["step"] for line in lines(folder)] == [1, 2, 3, 4]
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # a line torn by the kill
    resumed, work = run(folder)
    assert_identical(resumed, straight)
    assert lines(folder) == lines(tmp_path / "straight")
    assert work.report["resumed"] == 1 and work.report["redone_steps"] == 1


def test_killed_at_any_moment(tmp_path: Path) -> None:
    straight, _ = run(tmp_path / "straight", iterations=60)
    folder = tmp_path / "killed"
    process = in_subprocess(folder=str(folder), iterations=60, pause=0.05, checkpoint_seconds=0.1)
    metrics, limit = folder / "metrics.jsonl", time.monotonic() + 240
    while not metrics.exists() or metrics.read_text().count("\n") < 5:
        assert time.monotonic() < limit and process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait(timeout=60)
    resumed, _ = run(folder, iterations=60)
    assert_identical(resumed, straight)
    assert lines(folder) == lines(tmp_path / "straight")


def test_killed_while_it_counts_what_is_done_again(tmp_path: Path, monkeypatch: Any) -> None:
    """Nothing is counted twice, or not at all, wherever in resuming the kill comes."""
    Work(tmp_path).log(3, loss=1.0)
    rewind = Work.rewind

    def killed(work: Work, step: int) -> None:
        raise KeyboardInterrupt

    def killed_late(work: Work, step: int) -> None:
        rewind(work, step)
        raise KeyboardInterrupt

    for each in (killed, killed, killed_late):
        monkeypatch.setattr(Work, "rewind", each)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    monkeypatch.setattr(Work, "rewind", rewind)
    _, work = run(tmp_path)
    assert work.report["redone_steps"] == 3


def test_killed_before_the_first_checkpoint(tmp_path: Path) -> None:
    work = Work(tmp_path)
    work.log(3, loss=1.0)
    found, work = run(tmp_path)
    assert work.report["resumed"] == 1 and work.report["redone_steps"] == 3
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 13))


def test_broken_checkpoint_is_told_and_passed_over(tmp_path: Path) -> None:
    straight, _ = run(tmp_path / "straight")
    folder = tmp_path / "broken"
    with pytest.raises(StageError):
        run(folder, checkpoint_seconds=0, stop_at=6)
    flip_a_bit(checkpoint.listed(folder / "state")[0])
    resumed, work = run(folder)
    assert_identical(resumed, straight)
    assert len(work.alarms) == 1 and "checksum" in work.alarms[0]
    assert work.report["redone_steps"] == 1


def test_finished_training_is_not_repeated(tmp_path: Path) -> None:
    first, _ = run(tmp_path)
    again, work = run(tmp_path, broken_at=0)
    assert_identical(again, first)
    assert work.report["steps"] == 12


def test_what_is_logged_after_the_training_is_logged_once(tmp_path: Path) -> None:
    """A stage killed between its evaluation and its outcome evaluates again."""
    for _ in range(2):
        _, work = run(tmp_path)
        work.log(12, accuracy=0.5)
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [*range(1, 13), 12]
    assert found[-1] == {"step": 12, "accuracy": 0.5}


def test_nan_names_the_metric_and_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="loss is (nan|inf) at update 4; .*: none") as raised:
        run(tmp_path / "none", broken_at=3)
    assert raised.value.reason == "nan"
    with pytest.raises(StageError, match="at update 4; last good checkpoint: update 3"):
        run(tmp_path / "some", broken_at=3, checkpoint_seconds=0)
    path, _ = checkpoint.newest(tmp_path / "some" / "state")
    assert path is not None and checkpoint.step_of(path) == 3


def test_broken_parameters_are_not_saved(tmp_path: Path) -> None:
    """Update 2 overflows the weights although its loss was finite."""
    with pytest.raises(
        StageError, match="parameters is .* last good checkpoint: update 1"
    ) as raised:
        run(tmp_path, rate=1e39, checkpoint_seconds=0)
    assert raised.value.reason == "nan"
    assert [checkpoint.step_of(each) for each in checkpoint.listed(tmp_path / "state")] == [1]


def test_full_disk_leaves_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(StageError):
        run(tmp_path, stop_at=3)
    kept, _ = checkpoint.newest(tmp_path / "state")
    with largest_file(2000), pytest.raises(StageError) as raised:
        run(tmp_path)
    assert raised.value.reason == "disk"
    assert checkpoint.newest(tmp_path / "state") == (kept, [])


def test_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError):
        run(tmp_path, stop_at=3)
    path = checkpoint.listed(tmp_path / "state")[0]
    state = checkpoint.read(path)
    del state["module"]["average"]
    checkpoint.save(tmp_path / "state", 4, state)
    with pytest.raises(StageError, match="of another network.*average") as raised:
        run(tmp_path)
    assert raised.value.reason == "weights"


def test_samples_and_report(tmp_path: Path) -> None:
    _, work = run(tmp_path, seen=str(tmp_path / "seen"))
    seen = [json.loads(line) for line in (tmp_path / "seen0").read_text().splitlines()]
    assert seen == [[s, [i % IMAGES for i in range(8 * s, 8 * s + 8)]] for s in range(12)]
    assert set(work.report) == {
        "device", "seconds", "images", "images_per_second", "steps", "resumed", "redone_steps",
        "peak_memory_bytes", "gflops", "execution",
    }  # fmt: skip
    assert float(work.report["gflops"]) > 0
    assert work.report["device"] == "cpu" and int(work.report["peak_memory_bytes"]) > 10**6
    first = lines(tmp_path)[0]
    assert set(first) == {"step", "loss", "size", "follower", "lr", "progress"}


def test_only_rank_0_logs_and_warns(tmp_path: Path) -> None:
    work = Work(tmp_path, layout=Layout(rank=1, world=2))
    work.log(1, loss=1.0)
    work.alarm("x")
    work.rewind(0)
    assert list(tmp_path.iterdir()) == [] and work.alarms == []


def test_out_of_memory_is_told_as_such() -> None:
    told = pytest.raises(StageError, match="device_batch is 64")
    with told as raised, memory_errors(Layout(device_batch=64)):
        torch.empty(1 << 60, dtype=torch.uint8)
    assert raised.value.reason == "memory"
    with pytest.raises(RuntimeError, match="other"), memory_errors(Layout()):
        raise RuntimeError("other")


def test_a_rank_outside_the_world_is_refused() -> None:
    with pytest.raises(ValueError, match="rank 2 of 2"):
        Layout(rank=2, world=2)


def test_a_loss_that_does_not_move_alarms_and_stops_nothing(tmp_path: Path) -> None:
    """A rate of next to nothing on the same images each time; the other learns and is silent."""
    told = []
    for name, rate in (("still", 1e-12), ("moves", 0.02)):
        _, work = run(tmp_path / name, iterations=60, batch=IMAGES, dropout=0.0, rate=rate)
        told.append(read_alarms(tmp_path / name))
        assert work.alarms == told[-1] and work.report["steps"] == 60
    assert len(told[0]) == 1 and told[1] == []
    assert re.match(r"the loss does not move: [\d.]+ at update 1, [\d.]+ at update 15$", told[0][0])


def test_an_alarm_outlives_the_attempt_and_is_told_once(tmp_path: Path) -> None:
    options: dict[str, Any] = {"iterations": 60, "batch": IMAGES, "dropout": 0.0, "rate": 1e-12}
    with pytest.raises(StageError, match="after update 20"):
        run(tmp_path, stop_at=20, **options)
    run(tmp_path, **options)
    assert len(read_alarms(tmp_path)) == 1


def test_attention_on_one_patch_alarms(tmp_path: Path) -> None:
    work = Work(tmp_path)
    spread = torch.rand(8, 36).softmax(1)
    check_attention(work, spread)
    check_attention(work, 0.01 * spread)  # the class token itself may have the rest
    one = torch.zeros(8, 36).index_fill(1, torch.tensor([5]), 1.0)
    check_attention(work, torch.cat([one[:4], spread[:4]]))  # in half of the images
    check_attention(work, torch.ones(8, 1))
    assert work.alarms == []
    check_attention(work, one)
    check_attention(work, one)
    assert len(work.alarms) == 1 and "degenerate" in work.alarms[0]
