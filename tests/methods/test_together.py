"""Stages that train in turns in one process train as they do alone, to the last bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_methods import tiny
from torch import Tensor

from methods.data.sets import Patchwork
from methods.engine.coroutines import Coroutine, interleave
from methods.engine.work import Layout, Work
from methods.errors import StageError
from methods.networks.together import Together
from methods.parts.decoder import Transformer
from methods.parts.loss import L2
from methods.parts.masking import Random
from methods.parts.model import Method, Objective
from methods.parts.target import Pixels
from methods.pretrain import Pretraining
from methods.teachers.clip_network import FrozenClip

DATA = Patchwork(train=32, teacher=10, validation=10)
MILAN = tiny("milan")
ROWS: dict[str, Method] = {
    "milan": MILAN,
    "uniform": replace(MILAN, masking=Random(ratio=0.75)),
    "decoder": replace(MILAN, decoder=Transformer(width=16, depth=1, heads=2)),
    "pixels": replace(MILAN, objectives=(Objective(Pixels(), L2(), where="hidden"),)),
    "longer": replace(MILAN, optimisation=replace(MILAN.optimisation, epochs=2)),
    "codes": replace(tiny("beitv2"), augmentation=MILAN.augmentation),
}
Folders = dict[str, Path]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    DATA.prepare(root)
    return root


def work_of(folder: Path, data: Path, needs: Folders, **options: Any) -> Work:
    folder.mkdir(exist_ok=True)
    return Work(folder, needs, data, Layout(loader_workers=options.pop("workers", 0)), **options)


def run_together(works: Sequence[Work], names: Sequence[str]) -> dict[str, str]:
    """Runs the rows in turn; the messages of those that failed."""
    tasks = [Pretraining(ROWS[name], DATA) for name in names]
    together, failed = Together(tasks, works[0].data, works[0].layout), {}

    def body(name: str, task: Pretraining, work: Work) -> Callable[[], None]:
        def run() -> None:
            try:
                task.run(work)
            except StageError as error:
                failed[name] = f"{error.reason}: {error}"

        return run

    coroutines = []
    for name, task, work in zip(names, tasks, works, strict=True):
        coroutine = Coroutine(body(name, task, work))
        work.turn, work.together = coroutine.suspend, together
        coroutines.append(coroutine)
    interleave(coroutines)
    return failed


def left(folder: Path) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """The curve without what depends on the clock, and the encoder."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = ("time", "images_per_second", "system/")
    curve = [{k: v for k, v in line.items() if not k.startswith(clock)} for line in lines]
    return curve, load_file(folder / "encoder.safetensors")


def assert_equal(found: Path, expected: Path) -> None:
    (curve, weights), (wanted, wanted_weights) = left(found), left(expected)
    assert curve == wanted
    assert weights.keys() == wanted_weights.keys()
    assert all(weights[name].equal(item) for name, item in wanted_weights.items())


@pytest.fixture(scope="module")
def alone(
    tmp_path_factory: pytest.TempPathFactory, data: Path, needs: Folders
) -> tuple[Path, dict[str, Work]]:
    """Each row trained by itself, and what it worked with."""
    root = tmp_path_factory.mktemp("alone")
    works = {name: work_of(root / name, data, needs) for name in ROWS}
    for name, work in works.items():
        Pretraining(ROWS[name], DATA).run(work)
    return root, works


@pytest.mark.parametrize("workers", [0, 1])
def test_rows_train_as_if_alone(
    alone: tuple[Path, dict[str, Work]],
    data: Path,
    needs: Folders,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    passes = []
    forward = FrozenClip.forward

    def counted(network: FrozenClip, images: Tensor, *arguments: Any) -> Any:
        if len(images) == MILAN.optimisation.batch:  # pictures are drawn of four
            passes.append(network)
        return forward(network, images, *arguments)

    monkeypatch.setattr(FrozenClip, "forward", counted)
    works = [work_of(tmp_path / name, data, needs, workers=workers) for name in ROWS]
    assert run_together(works, list(ROWS)) == {}
    for name, work in zip(ROWS, works, strict=True):
        assert_equal(tmp_path / name, alone[0] / name)
        assert work.report["gflops"] == alone[1][name].report["gflops"]
    # Five rows look at the first batch themselves; then one pass a batch serves them all.
    assert len(set(passes)) == 1
    assert len(passes) == 5 + 3 + 4


def test_rows_that_stopped_at_different_updates_draw_level(
    alone: tuple[Path, dict[str, Work]], data: Path, needs: Folders, tmp_path: Path
) -> None:
    names = ("milan", "pixels", "longer")
    for name, updates in (("pixels", 2), ("longer", 3)):
        asked = iter(range(1, 100))
        stop = lambda limit=updates, asked=asked: "preempted" * (next(asked) == limit) or None  # noqa: E731
        with suppress(StageError):
            Pretraining(ROWS[name], DATA).run(work_of(tmp_path / name, data, needs, stop=stop))
    works = [work_of(tmp_path / name, data, needs) for name in names]
    assert run_together(works, names) == {}
    for name in names:
        assert_equal(tmp_path / name, alone[0] / name)


def test_a_row_that_fails_leaves_the_others_alone(
    alone: tuple[Path, dict[str, Work]], data: Path, needs: Folders, tmp_path: Path
) -> None:
    lost = {role: folder for role, folder in needs.items() if role != "clip"}
    works = [
        work_of(tmp_path / "milan", data, lost),
        work_of(tmp_path / "pixels", data, needs),
        work_of(tmp_path / "longer", data, needs, stop=lambda: "preempted"),
    ]
    failed = run_together(works, ("milan", "pixels", "longer"))
    assert failed.keys() == {"milan", "longer"}
    assert failed["milan"].startswith("needs: ") and "saved" in failed["longer"]
    assert_equal(tmp_path / "pixels", alone[0] / "pixels")


def test_images_that_cannot_be_read_end_all(data: Path, needs: Folders, tmp_path: Path) -> None:
    works = [work_of(tmp_path / name, tmp_path / "nowhere", needs) for name in ("milan", "pixels")]
    failed = run_together(works, ("milan", "pixels"))
    assert failed.keys() == {"milan", "pixels"}
    assert all(told.startswith("data: ") for told in failed.values())
