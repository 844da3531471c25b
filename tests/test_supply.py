"""Whether a loader keeps up: the bench's counts against a core's rate and the profile's CPUs."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from command_line import harness

import methods
from harness.bench.projection import GPUS, PRODUCT_SHARE, Step
from harness.cluster import Cluster
from harness.study import load_scale
from harness.supply import loaders, supply
from methods.errors import InputError
from methods.values import to_plain

FLOPS = 1e11
COUNTS = {**{each.name: 0.0 for each in fields(Step)}, "flops": FLOPS}
DEMAND = PRODUCT_SHARE * GPUS["A100"].flops / FLOPS  # 1872 images a second
CLUSTER = Cluster(backend="slurm", gpus=8, gpu="A100", cpus=12, loader_workers=10, device_batch=64)
PAPER = load_scale("paper")


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """MAE's step and the pipeline that it shares with MILAN, at 200 images a core and second."""
    augmentation = to_plain(methods.get("mae").augmentation)
    rows = [
        {"name": "mae", "encoder": "ViT-B/16", "counts": COUNTS},
        {"name": "milan", "augmentation": augmentation, "images_per_core_second": 200.0},
        {"name": "finetune", "encoder": "ViT-B/16", "counts": COUNTS},
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return tmp_path


def test_enough_processes_keep_up(bench: Path) -> None:
    found = {each.what: each for each in supply(PAPER, CLUSTER, bench)}
    assert set(found) == {"loader of mae", "loader of finetune"}
    mae = found["loader of mae"]
    assert mae.level == "ok"
    assert f"takes at most {DEMAND:,.0f} images a second" in mae.told
    assert "10 loader processes give 2,000" in mae.told
    unknown = found["loader of finetune"]  # a step without a core's rate of its pipeline
    assert unknown.level == "warning" and "harness bench --loading" in unknown.told


def test_too_few_are_told_how_many_would_do(bench: Path) -> None:
    few = replace(CLUSTER, cpus=4)
    (found,) = (each for each in supply(PAPER, few, bench) if each.what == "loader of mae")
    assert found.level == "warning" and "3 loader processes give 600" in found.told
    assert "loader_workers = 10 and cpus = 11 for each GPU would do" in found.told
    enough = replace(CLUSTER, cpus=11)
    (found,) = (each for each in supply(PAPER, enough, bench) if each.what == "loader of mae")
    assert found.level == "ok"


def test_processes_that_have_a_cpu() -> None:
    assert loaders(CLUSTER) == 10
    assert loaders(replace(CLUSTER, cpus=0)) == 10  # the profile leaves it to Slurm
    assert loaders(replace(CLUSTER, cpus=1)) == 0


def test_what_is_not_known_is_said_or_left_out(bench: Path, tmp_path: Path) -> None:
    (found,) = supply(PAPER, replace(CLUSTER, gpu=""), bench)
    assert found.level == "warning" and "A100, H100" in found.told
    assert list(supply(load_scale("mini"), CLUSTER, bench)) == []
    assert list(supply(PAPER, Cluster(), bench)) == []
    bad = tmp_path / "bad"
    bad.mkdir()
    for text, told in (("{", "cannot be read"), ("[1]", "not a list of the bench's rows")):
        (bad / f"{len(text)}.json").write_text(text)
        with pytest.raises(InputError, match=told):
            list(supply(PAPER, CLUSTER, bad))
        (bad / f"{len(text)}.json").unlink()


def test_the_doctor_says_so(bench: Path) -> None:
    words = ("doctor", "--scale", "paper", "--cluster", "eight-gpu-nodes", "--bench")
    told = harness(*words, str(bench), cwd=bench, check=False).stdout
    assert "ok       loader of mae: one A100" in told
    done = harness(*words, "nowhere", cwd=bench, check=False)
    assert done.returncode == 2 and "--bench nowhere: no such folder" in done.stderr
