"""The pretraining stage on a small Patchwork: what it leaves, and that layouts do not matter."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_methods import tiny

from methods.data.sets import Patchwork
from methods.engine.work import Layout, Work, read_alarms
from methods.errors import StageError
from methods.pretrain import Pretraining
from methods.values import from_plain, to_plain

HEADS = 2  # of the tiny CLIP
DATA = Patchwork(train=32, teacher=10, validation=10)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    DATA.prepare(root)
    return root


def run(
    folder: Path, name: str, needs: dict[str, Path], data: Path, layout: Layout, **changes: object
) -> dict[str, torch.Tensor]:
    """The encoder's weights after 4 updates of 8 images."""
    folder.mkdir()
    task = replace(Pretraining(tiny(name), DATA), **changes)  # type: ignore[arg-type]
    metrics = task.run(Work(folder=folder, needs=needs, data=data, layout=layout))
    assert 0 < metrics["loss"] < 100
    return load_file(folder / "encoder.safetensors")


def test_a_stage_leaves_encoders_and_metrics(
    tmp_path: Path, needs: dict[str, Path], data: Path
) -> None:
    weights = run(tmp_path / "a", "beitv2", needs, data, Layout(), milestones=(0.5,))
    early = load_file(tmp_path / "a" / "milestones" / "50" / "encoder.safetensors")
    assert early.keys() == weights.keys()
    assert not torch.equal(early["cls_token"], weights["cls_token"])
    without = run(tmp_path / "b", "beitv2", needs, data, Layout())
    assert all(torch.equal(weights[name], item) for name, item in without.items())
    last = json.loads((tmp_path / "a" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 4
    assert last["loss"] == pytest.approx(last["loss_tokens"] + last["loss_aggregated"], rel=1e-4)


def test_a_teacher_that_looks_at_one_patch_alarms(
    tmp_path: Path, needs: dict[str, Path], data: Path
) -> None:
    """All heads alike, and queries and keys so large that every softmax is a maximum."""
    run(tmp_path / "sound", "milan", needs, data, Layout())
    assert read_alarms(tmp_path / "sound") == []
    shutil.copytree(needs["clip"], tmp_path / "clip")
    path = tmp_path / "clip" / "clip.safetensors"
    weights = load_file(path)
    names = [name for name in weights if name.startswith("visual.") and "in_proj_weight" in name]
    for name in names:
        query_key = weights[name].unflatten(0, (3, HEADS, -1))[:2]
        query_key[:] = 1000 * query_key[:, :1]
    save_file(weights, path)
    run(tmp_path / "degenerate", "milan", {**needs, "clip": path.parent}, data, Layout())
    (alarm,) = read_alarms(tmp_path / "degenerate")
    assert "degenerate" in alarm and "one patch in most images" in alarm


@pytest.mark.parametrize("name", ["milan", "beitv2", "beit"])
def test_micro_batches_train_alike(
    tmp_path: Path, needs: dict[str, Path], data: Path, name: str
) -> None:
    """The losses of every update agree; weights would, but for Adam on gradients of nearly 0."""
    method = tiny(name)
    method = replace(method, encoder=replace(method.encoder, drop_path=0.0))
    curves = []
    for folder, layout in (("whole", Layout()), ("parts", Layout(device_batch=2))):
        run(tmp_path / folder, name, needs, data, layout, method=method)
        lines = (tmp_path / folder / "metrics.jsonl").read_text().splitlines()
        curves.append([json.loads(line)["loss"] for line in lines])
    assert len(curves[0]) == 4
    assert curves[1] == pytest.approx(curves[0], rel=5e-3)


def test_the_seed_decides(tmp_path: Path, needs: dict[str, Path], data: Path) -> None:
    first, again, other = (
        run(tmp_path / str(i), "mae", needs, data, Layout(), seed=seed)
        for i, seed in enumerate((1, 1, 2))
    )
    assert all(torch.equal(first[each], again[each]) for each in first)
    assert not torch.equal(first["cls_token"], other["cls_token"])


@pytest.mark.parametrize("name", ["milan", "cmae", "simmim-swin"])
def test_a_resumed_run_repeats_an_uninterrupted_one(
    tmp_path: Path, needs: dict[str, Path], data: Path, name: str
) -> None:
    """Bit for bit; with CMAE the moving averages have to be in the checkpoint."""
    expected = run(tmp_path / "whole", name, needs, data, Layout())
    (tmp_path / "parts").mkdir()
    calls: list[int] = []

    def stop() -> str | None:
        calls.append(1)
        return "preempted" if len(calls) == 2 else None

    work = Work(folder=tmp_path / "parts", needs=needs, data=data, stop=stop)
    task = Pretraining(tiny(name), DATA)
    with pytest.raises(StageError, match="preempted") as error:
        task.run(work)
    assert error.value.reason == "stopped"
    task.run(work)
    found = load_file(tmp_path / "parts" / "encoder.safetensors")
    assert all(torch.equal(found[each], expected[each]) for each in expected)


def test_a_missing_teacher_is_named(tmp_path: Path, data: Path) -> None:
    with pytest.raises(StageError, match="'clip'") as error:
        run(tmp_path / "a", "milan", {}, data, Layout())
    assert error.value.reason == "needs"


def test_a_teacher_on_another_grid_is_refused(
    tmp_path: Path, needs: dict[str, Path], data: Path
) -> None:
    method = tiny("milan")
    method = replace(method, encoder=replace(method.encoder, patch=16))
    with pytest.raises(StageError, match="grid") as error:
        run(tmp_path / "a", "milan", needs, data, Layout(), method=method)
    assert error.value.reason == "teacher"


def test_parts_that_do_not_fit_stop_the_stage(
    tmp_path: Path, needs: dict[str, Path], data: Path
) -> None:
    method = replace(tiny("mae"), decoder=tiny("maskdistill").decoder)
    with pytest.raises(StageError, match="LinearHead"):
        run(tmp_path / "a", "mae", needs, data, Layout(), method=method)


def test_the_task_survives_plain_data() -> None:
    task = Pretraining(tiny("beitv2"), DATA, seed=3, milestones=(0.1, 0.5))
    assert from_plain(Pretraining, json.loads(json.dumps(to_plain(task))), "task") == task
    with pytest.raises(ValueError, match="milestones"):
        Pretraining(tiny("mae"), DATA, milestones=(1.0,))
