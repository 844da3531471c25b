"""The bench: its parts add up, its counts and arithmetic are right, bad input is named."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from harness.bench.compiled import Backend
from harness.bench.counting import SMALL
from harness.bench.interval import ratio_interval
from harness.bench.measure import PARTS, measure, product_rate
from harness.bench.projection import GPU, Step, line, project, study_hours
from harness.bench.rows import Setting, machine, row
from harness.bench.subject import subjects
from harness.bench.table import read, render, write
from harness.cli import main
from harness.study import load_scale
from methods.engine.counts import Counter, size
from methods.engine.loop import fit
from methods.engine.work import Work
from methods.errors import InputError
from methods.teachers.untrained import untrained

CPU = torch.device("cpu")
TINY = load_scale("tiny")
MADE = GPU("made", flops=1e12 / 0.6, bandwidth=1e9 / 0.84, memory=1e9, link=1e9 / 0.84, source="-")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Two rows of the tiny scale, with projections."""
    torch.set_num_threads(1)
    setting = Setting("cpu", batch=4, steps=3, precision="fp32", gpus=(MADE,), threads=1)
    about = machine(setting)
    found = [row(each, setting) for each in subjects(["mae", "milan"], TINY, "fp32", 4)]
    return [{**each, "scale": "tiny", "machine": about} for each in found]


def test_the_parts_of_a_step_add_up() -> None:
    (subject,) = subjects(["beitv2"], TINY, "fp32", 4)
    measured = measure(subject, CPU, 2)
    assert len(measured.steps) == 2
    for step, seconds in zip(measured.steps, measured.seconds, strict=True):
        assert set(step) == set(PARTS) and min(step.values()) > 0
        assert seconds == pytest.approx(sum(step.values()))
    assert measured.steps[0]["teacher"] < measured.seconds[0]


def test_the_bench_trains_as_fit_does(tmp_path: Path) -> None:
    """Nothing that is measured differs from what a stage does."""
    (subject,) = subjects(["mae"], TINY, "fp32", 4)
    kept: list[Any] = []

    def remembering() -> Any:
        kept.append(subject.build())
        return kept[-1]

    measure(dataclasses.replace(subject, build=remembering), CPU, 1)
    torch.manual_seed(0)
    plain = subject.build()
    batches = [2, *SMALL, 4, 4]

    def stream(start: int) -> Any:
        return iter([[subject.sample(batch)] for batch in batches])

    optimisation = dataclasses.replace(subject.optimisation, iterations=len(batches))
    fit(plain, optimisation, stream, Work(tmp_path), 4000)
    for mine, theirs in zip(kept[0].module.parameters(), plain.module.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_counts_of_a_small_module() -> None:
    """A linear layer and a ReLU: one product, one kernel beside it; views launch nothing."""
    layer, x = nn.Linear(8, 16), torch.randn(4, 8)
    counter = Counter()
    counter.hold([*layer.parameters(), x])
    held = (8 * 16 + 16 + 4 * 8) * 4
    with torch.no_grad(), counter:
        y = layer(x)
        y.view(8, 8).t()
        z = y.relu()
        del y
        z.add_(1.0)
    assert counter.counts.kernels == 3
    wide = 4 * 16 * 4
    assert counter.counts.moved == 4 * wide  # relu in and out, add in and out
    assert counter.counts.peak == counter.counts.forward == held + 2 * wide
    assert counter.bytes == held + wide


def test_counts_of_gradients_and_of_an_optimiser() -> None:
    layer = nn.Linear(8, 16, bias=False)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    counter = Counter()
    counter.hold(layer.parameters())
    weight = 8 * 16 * 4
    with counter:
        layer(torch.ones(4, 8)).sum().backward()
        torch.ones(1000)  # after the backward pass
        # The input, the product and its sum.
        assert counter.counts.forward == weight + (4 * 8 + 4 * 16 + 1) * 4
        counter.again()
        optimizer.step()
    # Two moments and the number of the update are new; both are of the optimiser.
    assert weight * 4 <= counter.counts.peak < weight * 5
    assert counter.counts.moved >= weight * 5


def test_expanded_tensors_are_as_large_as_what_is_there() -> None:
    assert size(torch.zeros(1, 3).expand(5, 3)) == 12
    assert size(torch.zeros(5, 3)[:, :2]) == 40
    assert size(torch.zeros(0, 3)) == 0


def test_projection_is_its_arithmetic() -> None:
    step = Step(1e9, 1e6, 2e6, 1e6, 1e8, 0.0, kernels=10, gradients=4e6)
    alone = project(step, MADE, 10)
    assert alone["products"] == pytest.approx(0.01)
    assert alone["traffic"] == pytest.approx(0.012)
    assert alone["exchange"] == 0 and alone["seconds"] == pytest.approx(0.022)
    assert alone["images_per_second"] == pytest.approx(10 / 0.022)
    assert alone["outside_products"] == pytest.approx(12 / 22)
    assert alone["peak_bytes"] == 1.1e8
    eight = project(step, MADE, 10, gpus=8)
    assert eight["exchange"] == pytest.approx(2 * 7 / 8 * 4e6 / 1e9)
    assert eight["seconds"] == alone["seconds"]  # it hides behind the backward pass
    slow = project(Step(1e9, 1e6, 2e6, 1e6, 1e8, 0.0, 10, gradients=4e8), MADE, 10, gpus=8)
    assert slow["seconds"] == pytest.approx(0.022 / 3 + 0.7)
    many = project(Step(1e9, 1e6, 2e6, 1e6, 1e8, 0.0, 1e6, 4e6), MADE, 10)
    assert many["seconds"] == pytest.approx(5.0)  # its launches


def test_the_largest_batch_and_the_hours() -> None:
    assert line(30, 50, (2, 4)) == (10, 10)
    step = Step(1e9, 1e6, 2e6, 1e6, 1e8, 2e8, 10, 4e6)
    assert step.largest_batch(1e9) == 800 and step.largest_batch(2e8) == 0
    assert (step.peak(10), step.peak(300)) == (2e8, 4e8)
    assert Step(1e9, 1e6, 2e6, 1e6, 1e9, 2e8, 10, 4e6).largest_batch(1e9) == 0
    found = study_hours(step, MADE, images=3.6e6, gpus=8, most=256)
    assert found["batch"] == 256 and found["computed"]
    assert found["hours"] == pytest.approx(3.6e6 / found["images_per_second"] / 3600)
    assert found["gpu_hours"] == pytest.approx(8 * found["hours"])
    full = study_hours(Step(1e9, 1e6, 2e6, 1e6, 1e9, 2e8, 10, 4e6), MADE, 1.0, 8, 256)
    assert full["batch"] == 0 and "hours" not in full


def test_the_interval_holds_the_ratio_and_pairs_cancel() -> None:
    generator = np.random.default_rng(1)
    slower = 1 + generator.random(40)
    low, high = ratio_interval(1.5 * slower, slower)
    assert low == pytest.approx(1.5, abs=0.3) and high == pytest.approx(1.5, abs=0.3)
    assert low <= 1.5 <= high
    low, high = ratio_interval([2.0] * 5, [1.0] * 5)
    assert (low, high) == (2.0, 2.0)


def test_rows_say_what_was_measured(rows: list[dict[str, Any]]) -> None:
    mae, milan = rows
    assert (mae["name"], milan["name"]) == ("mae", "milan")
    for each in rows:
        assert each["images_per_second"] == pytest.approx(4 / each["step"])
        assert 0 < each["fraction_of_products"] < 1
        assert each["largest_batch"]["how"].startswith("computed")
        counts = each["counts"]
        assert counts["peak_step"] > 0 and counts["peak_image"] > 0 and counts["floor"] > 0
        assert each["projections"][0]["gpu"] == "made"
    assert milan["gflop_per_image"] > mae["gflop_per_image"]  # it has a teacher
    assert set(mae["seconds"]) == set(PARTS)


def test_tables_and_files(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    text = render(rows, "md")
    head, rule, *lines = text.split("\n\n")[0].splitlines()
    assert len(lines) == 2 and head.count("|") == rule.count("|") == lines[0].count("|")
    assert "| milan |" in text and "made" in text and "untrained" in text
    assert json.loads(render(rows, "json"))[1]["name"] == "milan"
    for each in [*rows, rows[0]]:
        path = write(tmp_path, each)
    assert path.name == "tiny-cpu-fp32-b4.json"
    assert [each["name"] for each in read(tmp_path)] == ["milan", "mae"]
    path.write_text("{")
    with pytest.raises(InputError, match="cannot be kept"):
        write(tmp_path, rows[0])


def test_a_peers_row_is_told_beside_ours(rows: list[dict[str, Any]]) -> None:
    peer = {"name": "p", "version": "1", "precision": "fp32", "step": 0.2, "ratio": 1.25,
            "interval": (1.1, 1.4), "fraction_of_products": 0.1,
            "fraction_of_its_products": 0.2}  # fmt: skip
    text = render([{**rows[0], "peer": peer}, rows[1]], "md")
    assert "| 1.25 | 1.10 to 1.40 |" in text


def test_products_have_a_rate() -> None:
    assert 1e8 < product_rate(CPU, size=256, seconds=0.0) < 1e14


def test_untrained_networks_have_the_shape_of_trained_ones() -> None:
    paper = load_scale("paper")
    with torch.device("meta"):
        clip: Any = untrained(paper.teachers["clip"])
        vqkd: Any = untrained(paper.tokenizers["vqkd"])
        dalle: Any = untrained(paper.tokenizers["dalle"])
    assert clip.widths == {"raw": 768, "normalised": 768, "projected": 512}
    assert clip.grid == vqkd.grid == dalle.grid == (14, 14)
    assert vqkd.size == dalle.size == 8192 and dalle.image == 112


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--methods", "miln"], "did you mean 'milan'"),
        (["--batch", "0"], "--batch 0"),
        (["--steps", "-1"], "--steps -1"),
        (["--gpu", "A10"], "--gpu: no figures of 'A10'"),
        (["--scale", "tin"], "tin"),
        (["--device", "cuda"], "--device cuda"),
        (["--peer", "mmpretran", "--methods", "mae"], "did you mean 'mmpretrain'"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(SystemExit) as left:
        main(["bench", "--scale", "tiny", *words])
    error = capsys.readouterr().err
    assert left.value.code == 2
    assert told in error and len(error.strip().splitlines()) == 1


def test_the_command_prints_and_keeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--scale", "tiny", "--methods", "vqkd", "--batch", "2", "--steps", "1"]
    with pytest.raises(SystemExit) as left:
        main(["bench", *words, "--format", "json", "--out", str(tmp_path)])
    assert left.value.code == 0
    (printed,) = json.loads(capsys.readouterr().out)
    assert [printed] == read(tmp_path) and printed["precision"] == "fp32"
    assert printed["machine"]["versions"]["torch"] == torch.__version__.split("+")[0]


def test_counts_of_fused_kernels() -> None:
    """A chain is one kernel each way: it reads its inputs once and writes its output once."""
    backend = Backend()
    backend.counting = True
    x = torch.ones(1000, requires_grad=True)
    torch.compiler.reset()
    chain = torch.compile(lambda x: (x.sin() + 1) * 2, backend=backend, dynamic=False)
    for times in (1, 2):
        chain(x).sum().backward()
        # x and the output; x, the output's gradient and x's.
        assert (backend.kernels, backend.moved) == (2 * times, times * (2 + 3) * 4000)
    torch.testing.assert_close(x.grad, 4 * x.detach().cos())
    torch.compiler.reset()


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++ on a CPU")
def test_compiled_steps_take_turns(tmp_path: Path) -> None:
    (subject,) = subjects(["mae"], TINY, "bf16", 4)
    found = row(subject, Setting("cpu", batch=4, steps=2, gpus=(MADE,), compile=True, busy=True))
    compiled = found["compiled"]
    assert compiled["step"] > 0 and compiled["ratio"] > 0
    # In half precision there are casts to fuse.
    for name in ("kernels", "moved_image"):
        assert 0 < compiled["counts"][name] < found["counts"][name]
    faster, plain = compiled["projections"][0], found["projections"][0]
    assert faster["traffic"] < plain["traffic"] and faster["products"] == plain["products"]
    whole = {**found, "scale": "tiny", "machine": machine(Setting("cpu", batch=4, steps=2))}
    assert "mae compiled" in render([whole], "md")
    assert write(tmp_path, whole).name == "tiny-cpu-bf16-b4-busy-compiled.json"


@pytest.mark.long
def test_mmpretrain_takes_its_turn() -> None:
    """Where it is installed: on equal encoders, with as many FLOPs but for a few per cent."""
    if importlib.util.find_spec("mmpretrain") is None:
        pytest.skip("onedl-mmpretrain is not installed")
    (subject,) = subjects(["mae"], load_scale("paper"), "fp32", 1)
    found = row(subject, Setting("cpu", batch=1, steps=1, peer="mmpretrain", busy=True))
    peer = found["peer"]
    assert peer["precision"] == "fp32" and peer["ratio"] > 0
    assert 0.9 < found["gflop_per_image"] / peer["gflop_per_image"] <= 1
    (small,) = subjects(["mae"], TINY, "fp32", 1)
    with pytest.raises(InputError, match="ViT-B/16"):
        row(small, Setting("cpu", batch=1, steps=1, peer="mmpretrain"))
