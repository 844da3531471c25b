"""Two ranks compute what one computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import IMAGES, lines, run
from two_processes import run_two

from methods.engine import distributed
from methods.engine.work import Layout
from methods.errors import StageError


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder and the results of both ranks; "resumed" had five updates of one rank before."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.raises(StageError):
        run(folder / "resumed", dropout=0.0, stop_at=5)
    run_two(Path(__file__).with_name("two_ranks.py"), folder, folder)
    return folder, torch.load(folder / "results.pt", weights_only=True)


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, item in expected.items():
        torch.testing.assert_close(found[name], item, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("case", "options"),
    [("even", {}), ("uneven", {"batch": 7}), ("weighted", {"weighted": True}), ("resumed", {})],
)
def test_two_ranks_equal_one(
    two: tuple[Path, dict[str, Any]], tmp_path: Path, case: str, options: dict[str, Any]
) -> None:
    folder, results = two
    alone, _ = run(tmp_path, dropout=0.0, **options)
    assert_same(results[case], alone)
    losses = [line["loss"] for line in lines(tmp_path)]
    assert [line["loss"] for line in lines(folder / case)] == pytest.approx(losses, rel=1e-3)


def test_another_number_of_ranks_goes_on_with_the_same_samples(
    two: tuple[Path, dict[str, Any]],
) -> None:
    folder, _ = two
    seen: dict[int, list[int]] = {}
    for rank in (0, 1):
        for line in (folder / f"seen{rank}").read_text().splitlines():
            step, mine = json.loads(line)
            seen.setdefault(step, []).extend(mine)
    assert sorted(seen) == list(range(5, 12))
    assert all(seen[s] == [i % IMAGES for i in range(8 * s, 8 * s + 8)] for s in seen)


def test_collectives(two: tuple[Path, dict[str, Any]]) -> None:
    _, results = two
    rows = torch.tensor([[0.0, 1], [2, 3], [4, 5], [10, 11], [12, 13]])
    assert torch.equal(results["gather"]["rows"], rows)
    torch.testing.assert_close(results["gather"]["gradient"], 2 * rows[:3] / rows.numel())
    assert results["gather"]["flags"].tolist() == [False, True]
    assert results["reduced"].item() == 3
    assert results["highest"].item() == 2
    assert results["sent"].item() == 5
    assert results["told"] == {"rank": 0}


def test_collectives_alone() -> None:
    rows = torch.randn(3, 2)
    assert distributed.setup(Layout()) == torch.device("cpu")
    assert distributed.gather(rows) is rows
    assert distributed.all_reduce(rows, "max") is rows
    assert distributed.broadcast(rows) is rows
    assert distributed.broadcast_object("x") == "x"


def test_ranks_without_an_address_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(StageError, match="2 ranks need MASTER_ADDR to meet") as raised:
        distributed.setup(Layout(world=2))
    assert raised.value.reason == "layout"


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA devices")
def test_missing_cuda_says_so() -> None:
    with pytest.raises(StageError, match="CUDA") as raised:
        distributed.setup(Layout(device="cuda"))
    assert raised.value.reason == "layout"
