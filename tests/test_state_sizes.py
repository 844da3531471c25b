"""What a dry run says of the disk: its formulas against networks and files that there are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import harness
from torch import nn

import methods
from evals.encoders import Source, build_trainable
from evals.linear_training import Heads
from evals.segmentation_mmseg import EncoderDecoder
from evals.segmentation_model import build_segmentor
from harness.plan import make_plan
from harness.preview import disk_bytes
from harness.stage import Stage, task_from_record
from harness.store import Store
from harness.study import Study, load_scale
from methods.engine import checkpoint
from methods.networks.encoders import initialised
from methods.networks.pretrainer import Pretrainer
from methods.parts.decoder import Decoder
from methods.parts.optimisation import Optimisation
from methods.parts.size import StateSize
from methods.teachers.clip_training import ContrastiveClip
from methods.teachers.dvae_training import Dvae
from methods.teachers.vqkd_network import VqkdNetwork
from methods.values import with_fields


def plan_of(scale: str) -> dict[str, Stage]:
    """A stage of every kind and method, by its path without the key."""
    evals = ("linear", "finetune", "segmentation")
    plan = make_plan(Study("sizes", methods=methods.names(), evals=evals), load_scale(scale))
    return {f"{stage.kind}/{stage.label}": stage for stage in plan.stages.values()}


FEW = ("mae-s0", "beitv2-s0", "vqkd")  # of the large ones: an encoder of each family
PLANS = {scale: plan_of(scale) for scale in ("mini", "paper")}
TRAINED = [
    (scale, name)
    for scale, stages in PLANS.items()
    for name, stage in stages.items()
    if stage.kind == "pretrain"
    or (hasattr(stage.task, "optimisation") and (scale == "mini" or name.endswith(FEW)))
]


@pytest.fixture(autouse=True)
def without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """mmengine's initialisation wants numbers; that of networks without memory has none."""
    monkeypatch.setattr(EncoderDecoder, "init_weights", lambda self: None)


def build(stage: Stage) -> nn.Module:
    """What the stage's training checkpoints, without memory where that is possible."""
    task, frozen = stage.task, {role: each.task for role, each in stage.needs.items()}
    if stage.kind == "linear":
        heads = 1 + len(task.rates)
        return Heads(task.encoder.width, len(task.data.classes), heads, task.holdout, task.seed)
    with torch.device("meta"):
        if stage.kind == "pretrain":
            return Pretrainer(task.method, frozen)
        if stage.kind == "teacher":
            return ContrastiveClip(task.model, task.image_image_weight)
        if stage.kind == "tokenizer" and "clip" in frozen:
            return VqkdNetwork(**task.network(frozen["clip"].widths["projected"]))
        if stage.kind == "tokenizer":
            return Dvae(task.network, task.divergence)
        encoder = task.encoder
        if stage.kind == "segmentation":
            encoder = replace(encoder, image=task.crop)  # what has no memory cannot be resized
        found = Source(*encoder.timm(), initialised(encoder).state_dict(), "")
        if stage.kind == "segmentation":
            return build_segmentor(task, found)
        classes = len(task.data.classes)
        return build_trainable(found, task.seed, classes=classes, drop_path=task.drop_path)


def numbers(module: nn.Module) -> tuple[int, int]:
    """Those that are trained, and all that a checkpoint holds."""
    trained = sum(each.numel() for each in module.parameters() if each.requires_grad)
    return trained, sum(each.numel() for each in module.state_dict().values())


@pytest.mark.parametrize("scale, name", TRAINED)
def test_sizes_are_those_of_the_networks(scale: str, name: str) -> None:
    stage = PLANS[scale][name]
    told = stage.task.state_size({role: each.task for role, each in stage.needs.items()})
    assert (told.trained, told.trained + told.fixed) == numbers(build(stage))
    if stage.kind == "pretrain":
        with torch.device("meta"):
            model = stage.task.method.encoder.build().model
        assert told.exported == numbers(model)[1]


@pytest.mark.parametrize(
    "name, changes",
    [
        ("pretrain/beitv2-s0", {"method.decoder.shared_head": False, "method.decoder.depth": 2}),
        ("pretrain/beit-s0", {"method.encoder.layer_scale": None}),
        ("pretrain/mae-s0", {"method.encoder.layer_scale": 0.1}),
        ("tokenizer/dalle", {"blocks": 3}),
        ("teacher/clip", {"image_image_weight": 1.0, "text_depth": 2}),
        ("segmentation/milan-s0", {"blocks": [0, 1, 2, 3], "crop": 64, "pool_scales": [1, 2]}),
        ("segmentation/beit-s0", {"blocks": [0, 1, 2, 3], "crop": 64}),
    ],
)
def test_sizes_follow_the_fields(name: str, changes: dict[str, Any]) -> None:
    stage = PLANS["mini"][name]
    task = with_fields(stage.task, changes, "a study")
    changed = Stage(stage.kind, stage.label, task, stage.needs)
    told = task.state_size({role: each.task for role, each in stage.needs.items()})
    assert (told.trained, told.trained + told.fixed) == numbers(build(changed))


def test_a_part_that_does_not_tell_its_size_is_no_error() -> None:
    stage = PLANS["mini"]["pretrain/simmim-s0"]
    task = with_fields(stage.task, {}, "a study")
    object.__setattr__(task.method, "decoder", Decoder())
    assert disk_bytes(Stage("pretrain", "own", task, stage.needs)) is None


def test_files_of_a_finished_study_take_what_was_told(comparison: Path) -> None:
    store = Store(comparison / "runs")
    for folder in store.folders():
        task = task_from_record(store.record(folder), "stage.json")
        needs = {}
        for role, key in store.record(folder)["needs"].items():
            found = store.find(key)
            assert found is not None
            needs[role] = task_from_record(store.record(found), "stage.json")
        told, optimisation = task.state_size(needs), getattr(task, "method", task).optimisation
        # Names and shapes take some hundred bytes a tensor, which counts at this scale alone.
        for path in (folder / "state").glob("*.pt"):
            expected = told.checkpoint_bytes(optimisation)
            assert path.stat().st_size == pytest.approx(expected, abs=200_000), path
        for path in folder.glob("*.safetensors"):
            assert path.stat().st_size == pytest.approx(4 * told.exported, abs=50_000), path
    kept = checkpoint.KEPT
    assert StateSize(1000).disk_bytes(Optimisation(1, 1, 1.0)) == kept * 3 * 4000
    assert StateSize(1000).disk_bytes(Optimisation(1, 1, 1.0, optimizer="lars")) == kept * 2 * 4000
    assert StateSize(exported=1000).disk_bytes(None) == 4000


def test_a_dry_run_adds_up(tmp_path: Path) -> None:
    words = ("run", "--dry-run", "--scale", "paper", "--cluster", "eight-gpu-nodes")
    told = harness(*words, "--methods", "milan", "--evals", "linear", cwd=tmp_path).stdout
    headings = [line for line in told.splitlines() if line.startswith("==== ")]
    assert len(headings) == 4
    assert headings[1].startswith("==== pretrain/milan-s0-")
    assert ": batch 4096 = 16 ranks x 1 x 256 images, 768 GPU hours until the" in headings[1]
    assert headings[1].endswith(", 3.0 GB on the disk")
    assert told.splitlines()[-1].startswith("in all 4 jobs, at most 865 GPU hours without requeues")
