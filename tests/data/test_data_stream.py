"""The stream: a pure function of seed and step, whatever the ranks, workers and micro-batches."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from methods.data.augment import ToSample
from methods.data.sets import Patchwork
from methods.data.stream import (
    Samples,
    Stream,
    evaluation_batches,
    permutation,
    positions,
    split_batch,
)
from methods.engine.work import Layout
from methods.errors import StageError
from methods.parts.augment import Augmentation, EvaluationTransform, SecondView

torch.set_num_threads(1)

ALONE = Layout()
VIEWS = Augmentation(size=24, second=SecondView(12)).build()


class Numbers:
    """A source whose items are their own index; those in `bad` cannot be read."""

    def __init__(self, length: int, bad: tuple[int, ...] = (), skip: int = 0) -> None:
        self.length, self.bad, self.skip = length, bad, skip

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        if index in self.bad:
            raise StageError("data", f"picture {index} is broken")
        return index


def number(item: int, generator: np.random.Generator) -> dict[str, Any]:
    return {"value": item, "draw": generator.random(3)}


def taken(stream: Stream, steps: int) -> list[dict[str, torch.Tensor]]:
    """Each step's micro-batches put together."""
    return [
        {
            name: torch.cat([micro[name] for micro in micros])
            for name in micros[0]
            if isinstance(micros[0][name], torch.Tensor)
        }
        for micros in itertools.islice(stream, steps)
    ]


def assert_equal(left: list[dict[str, torch.Tensor]], right: list[dict[str, torch.Tensor]]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    Patchwork(train=30, teacher=20, validation=21).prepare(root)
    return root


def test_order_is_a_function_of_seed_and_position() -> None:
    every = positions(0, 35, 10, seed=3)
    assert every[7:23] == positions(7, 23, 10, seed=3)
    assert [epoch for epoch, _ in every] == [p // 10 for p in range(35)]
    for epoch in range(3):
        assert sorted(i for e, i in every if e == epoch) == list(range(10))
    assert every[:10] != positions(0, 10, 10, seed=4)
    assert not np.array_equal(permutation(3, 0, 10), permutation(3, 1, 10))


def test_batches_span_epochs() -> None:
    steps = taken(Stream(Numbers(10), number, 6, seed=0, layout=ALONE), 5)
    values = torch.cat([step["value"] for step in steps]).tolist()
    assert [sorted(values[at : at + 10]) for at in (0, 10, 20)] == [list(range(10))] * 3


def test_an_image_is_drawn_anew_each_epoch() -> None:
    samples = Samples(Numbers(4), number, seed=0)
    assert not np.array_equal(samples[0, 2]["draw"], samples[1, 2]["draw"])
    assert np.array_equal(samples[1, 2]["draw"], Samples(Numbers(4), number, 0)[1, 2]["draw"])


@pytest.mark.parametrize("start", [1, 4, 9])
def test_resumed_at_a_step_equals_from_the_beginning(start: int) -> None:
    whole = taken(Stream(Numbers(13), number, 4, 5, ALONE), start + 3)
    assert_equal(whole[start:], taken(Stream(Numbers(13), number, 4, 5, ALONE, start=start), 3))


@pytest.mark.parametrize(("world", "device_batch"), [(1, 2), (1, 4), (2, None), (2, 2), (4, 2)])
def test_layout_changes_nothing(root: Path, world: int, device_batch: int | None) -> None:
    source = Patchwork(train=30, teacher=20, validation=21).open(root, "train")
    whole = taken(Stream(source, ToSample(VIEWS), 8, 1, ALONE), 6)
    ranks = [
        taken(
            Stream(
                source,
                ToSample(VIEWS),
                8,
                1,
                Layout(rank=rank, world=world, device_batch=device_batch),
            ),
            6,
        )
        for rank in range(world)
    ]
    joined = [
        {name: torch.cat([step[name] for step in steps]) for name in steps[0]}
        for steps in zip(*ranks, strict=True)
    ]
    assert_equal(whole, joined)


def test_workers_change_nothing(root: Path) -> None:
    source = Patchwork(train=30, teacher=20, validation=21).open(root, "teacher")
    alone, loaded = (
        Stream(source, ToSample(VIEWS), 8, 1, Layout(loader_workers=workers, device_batch=4))
        for workers in (0, 2)
    )
    state = torch.get_rng_state()
    for ours, theirs in itertools.islice(zip(alone, loaded, strict=True), 5):
        assert_equal(
            [{k: v for k, v in m.items() if k != "caption"} for m in ours],
            [{k: v for k, v in m.items() if k != "caption"} for m in theirs],
        )
        assert [m["caption"] for m in ours] == [m["caption"] for m in theirs]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_holds_what_the_interface_says(root: Path) -> None:
    source = Patchwork(train=30, teacher=20, validation=21).open(root, "teacher")
    (batch,) = next(iter(Stream(source, ToSample(VIEWS), 6, 0, ALONE)))
    assert batch["image"].shape == (6, 3, 24, 24) and batch["image"].dtype == torch.uint8
    assert batch["second"].shape == (6, 3, 12, 12) and batch["second"].dtype == torch.uint8
    assert batch["label"].dtype == batch["index"].dtype == torch.int64
    assert source.captions is not None
    assert batch["caption"] == [source.captions[i] for i in batch["index"].tolist()]
    assert batch["label"].tolist() == source.labels[batch["index"].numpy()].tolist()


@pytest.mark.parametrize(
    ("batch", "world", "device_batch", "unit", "expected"),
    [
        (8, 1, None, 2, [8]),
        (7, 1, None, 2, [7]),
        (8, 2, None, 2, [4]),
        (4096, 8, 200, 2, [128] * 4),
        (12, 1, 5, 2, [4, 4, 4]),
        (6, 2, 1, 1, [1, 1, 1]),
        (6, 2, None, 1, [3]),
    ],
)
def test_a_batch_is_cut_evenly(
    batch: int, world: int, device_batch: int | None, unit: int, expected: list[int]
) -> None:
    assert split_batch(batch, Layout(world=world, device_batch=device_batch), unit) == expected


@pytest.mark.parametrize(
    ("batch", "world", "device_batch"), [(7, 2, None), (6, 2, None), (9, 1, 4), (8, 1, 1)]
)
def test_a_batch_that_would_tear_pairs_is_refused(
    batch: int, world: int, device_batch: int | None
) -> None:
    with pytest.raises(StageError) as error:
        split_batch(batch, Layout(world=world, device_batch=device_batch))
    assert error.value.reason == "layout"


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_sees_each_image_once(root: Path, world: int, workers: int) -> None:
    source = Patchwork(train=30, teacher=20, validation=21).open(root, "validation")
    transform = ToSample(EvaluationTransform(24).build())
    seen: list[int] = []
    for rank in range(world):
        layout = Layout(rank=rank, world=world, loader_workers=workers)
        for batch in evaluation_batches(source, transform, 5, layout):
            assert len(batch["image"]) <= 5
            seen += batch["index"].tolist()
    assert sorted(seen) == list(range(21))


def test_more_ranks_than_images() -> None:
    assert list(evaluation_batches(Numbers(2), number, 4, Layout(rank=2, world=3))) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(workers: int) -> None:
    layout = Layout(loader_workers=workers)
    with pytest.raises(StageError, match="picture 5 is broken") as error:
        taken(Stream(Numbers(10, bad=(5,)), number, 10, 0, layout), 1)
    assert error.value.reason == "data"
    with pytest.raises(StageError, match="picture 5 is broken"):
        list(evaluation_batches(Numbers(10, bad=(5,), skip=3), number, 5, layout))


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_are_replaced_within_the_budget(workers: int) -> None:
    source = Numbers(10, bad=(3, 4, 9), skip=3)
    stream = Stream(source, number, 10, 0, Layout(loader_workers=workers))
    told: list[str] = []
    stream.alarm = told.append
    steps = taken(stream, 2)
    assert stream.skipped == {3, 4, 9}
    cannot = "cannot be read; others take its place"
    assert sorted(told) == [f"image {index} {cannot}" for index in (3, 4, 9)]
    good = [0, 1, 2, 5, 6, 7, 8]
    for step in steps:
        assert sorted(step["index"].tolist()) == sorted([*good, 5, 5, 0])
    with pytest.raises(StageError, match="skip = 2"):
        taken(Stream(replace_budget(source, 2), number, 10, 0, ALONE), 2)


def replace_budget(source: Numbers, skip: int) -> Numbers:
    return Numbers(source.length, source.bad, skip)


class Lethal(Numbers):
    """The process that reads item 7 is killed, as a machine short of memory would do."""

    def __getitem__(self, index: int) -> int:
        if index == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_a_killed_worker_is_an_error_and_no_hang() -> None:
    stream = Stream(Lethal(10), number, 5, 0, replace(ALONE, loader_workers=1))
    with pytest.raises(StageError, match="loader process died") as error:
        taken(stream, 3)
    assert error.value.reason == "data"


def test_workers_outlive_the_signals_that_end_a_job() -> None:
    others = set(multiprocessing.active_children())
    steps = iter(Stream(Numbers(10), number, 4, 0, replace(ALONE, loader_workers=1)))
    expected = taken(Stream(Numbers(10), number, 4, 0, ALONE), 12)
    assert torch.equal(next(steps)[0]["value"], expected[0]["value"])
    workers = set(multiprocessing.active_children()) - others
    assert len(workers) == 1
    # Sent by another process than the stage's own, as a cluster's daemon does.
    code = "import os, sys; [os.kill(int(sys.argv[1]), int(s)) for s in sys.argv[2:]]"
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    for worker in workers:
        arguments = [str(worker.pid), *(str(int(name)) for name in signals)]
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=60)
    for step in expected[1:]:
        assert torch.equal(next(steps)[0]["value"], step["value"])


def test_workers_end_with_the_stream() -> None:
    others = set(multiprocessing.active_children())
    steps = iter(Stream(Numbers(10), number, 4, 0, replace(ALONE, loader_workers=1)))
    next(steps)
    workers = set(multiprocessing.active_children()) - others
    del steps
    for worker in workers:
        worker.join(timeout=60)
    assert [worker.exitcode for worker in workers] == [0]


def test_a_process_ends_although_its_loader_is_open() -> None:
    """As after an error: the iterator is still referenced when the interpreter goes."""
    code = """
import sys
sys.path[:0] = sys.argv[1:]
from test_data_stream import ALONE, Numbers, Stream, number, replace
kept = iter(Stream(Numbers(10), number, 4, 0, replace(ALONE, loader_workers=2)))
next(kept)
sys.stay = kept
raise SystemExit(3)
"""
    here = Path(__file__).parent
    paths = [str(here), str(here.parents[1])]
    done = subprocess.run([sys.executable, "-c", code, *paths], timeout=120)
    assert done.returncode == 3


def test_another_error_in_a_worker_is_not_hidden() -> None:
    def faulty(item: int, generator: np.random.Generator) -> dict[str, Any]:
        raise ZeroDivisionError("a mistake in the code")

    for workers in (0, 1):
        with pytest.raises(ZeroDivisionError, match="a mistake"):
            taken(Stream(Numbers(4), faulty, 2, 0, Layout(loader_workers=workers)), 1)


def test_an_empty_source_is_refused() -> None:
    with pytest.raises(StageError, match="empty"):
        Stream(Numbers(0), number, 2, 0, ALONE)
