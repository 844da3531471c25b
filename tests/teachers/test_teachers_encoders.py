"""Encoders without text as teachers: DINO's, MAE's and BEiT v2's files, or pretrained here."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from harness.plan import make_plan
from harness.reconcile import about_stage
from harness.study import Study, StudyRow, load_scale, load_study
from methods.engine.work import Layout, Work
from methods.errors import InputError, StageError
from methods.networks.export import write_encoder
from methods.networks.pretraining import count_parameters
from methods.networks.targets import Inputs
from methods.parts.augment import mean_std
from methods.parts.encoder import Beit, Encoder, ViT
from methods.parts.masking import SemanticAware
from methods.parts.target import Features
from methods.teachers import ReleasedEncoder, load_teacher
from methods.teachers.encoder_network import FrozenEncoder

SIZE = {"image": 48, "patch": 16, "width": 32, "depth": 3, "heads": 2}
VIT, BEIT = ViT(**SIZE), Beit(**SIZE)
TEACHER = {"objectives.0.target.statistics": "own", "objectives.0.target.teacher": "mae"}


def official(encoder: Encoder) -> dict[str, Tensor]:
    """The encoder's tensors under its authors' names, which are timm's, none of them constant."""
    torch.manual_seed(0)
    state = encoder.build().model.state_dict()
    return {name: item + 0.05 * torch.randn_like(item) for name, item in state.items()}


def dino(state: dict[str, Tensor]) -> dict[str, Any]:
    """DINO's full checkpoint (main_dino.py): the student wrapped for distributed training."""
    head = {"head.mlp.0.weight": torch.zeros(2, 2), "head.last_layer.weight_g": torch.ones(2, 1)}
    teacher = {f"backbone.{name}": item for name, item in state.items()} | head
    student = {f"module.{name}": item + 1 for name, item in teacher.items()}
    plain = {"student": student, "teacher": teacher, "epoch": 3, "args": argparse.Namespace(lr=1)}
    return {**plain, "optimizer": {"state": {}}, "dino_loss": {"center": torch.zeros(1, 2)}}


def mae(state: dict[str, Tensor]) -> dict[str, Any]:
    return {"model": state | {"mask_token": torch.zeros(3), "decoder_pred.bias": torch.zeros(3)}}


def beitv2(state: dict[str, Tensor]) -> dict[str, Any]:
    index = {"rel_pos_bias.relative_position_index": torch.zeros(10, 10, dtype=torch.int64)}
    return {"module": state | index | {"lm_head.bias": torch.zeros(5)}}


FILES = {
    "backbone": (VIT, dict),
    "full": (VIT, dino),
    "mae": (VIT, mae),
    "beitv2": (BEIT, beitv2),
}


def run(task: ReleasedEncoder, data: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    task.run(Work(folder=folder, data=data))
    return folder


@pytest.mark.parametrize("name", FILES)
def test_released_encoders_come_in(name: str, tmp_path: Path) -> None:
    encoder, layout = FILES[name]
    state = official(encoder)
    torch.save(layout(state), tmp_path / "weights.pth")
    task = ReleasedEncoder(weights="weights.pth", encoder=encoder)
    teacher = load_teacher(run(task, tmp_path, tmp_path / "teacher"), grid=(3, 3))
    assert isinstance(teacher, FrozenEncoder) and teacher.widths == task.widths
    assert (teacher.grid, teacher.widths["projected"]) == (task.grid, 32)
    kind, arguments = encoder.timm()
    model = timm.create_model(kind, **arguments).eval()
    model.load_state_dict(state, strict=True)
    images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in mean_std("imagenet"))
    with torch.no_grad():
        expected = model.forward_features((images - mean) / std)
    output = teacher(images, "own")
    torch.testing.assert_close(output.normalised, expected)
    assert output.projected is output.normalised and output.raw.shape == (2, 10, 32)
    torch.testing.assert_close(model.norm(output.raw), expected)


@pytest.mark.parametrize("encoder", [VIT, BEIT])
def test_attention_is_that_of_the_last_block(encoder: Encoder, tmp_path: Path) -> None:
    """The class token's row of the softmax that the plain (not fused) kernel forms."""
    torch.save(official(encoder), tmp_path / "weights.pth")
    task = ReleasedEncoder(weights="weights.pth", encoder=encoder)
    teacher = load_teacher(run(task, tmp_path, tmp_path / "teacher"))
    seen: list[Tensor] = []
    attention = teacher.model.blocks[-1].attn
    attention.fused_attn = False
    attention.attn_drop.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    output = teacher(torch.rand(2, 3, 48, 48))
    torch.testing.assert_close(output.attention, seen[-1][:, :, 0, 1:].mean(1))
    assert output.attention.shape == (2, 9) and (output.attention > 0).all()
    mask = SemanticAware(0.75).mask(torch.zeros(2, 9), output.attention)
    assert (mask.sum(1) == 7).all()


def test_each_teacher_says_what_its_images_are_normalised_by(tmp_path: Path) -> None:
    torch.save(official(VIT), tmp_path / "weights.pth")
    images = torch.rand(1, 3, 48, 48)
    for statistics in ("imagenet", "half"):
        task = ReleasedEncoder(weights="weights.pth", encoder=VIT, statistics=statistics)
        teacher = load_teacher(run(task, tmp_path, tmp_path / statistics))
        mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in mean_std(statistics))
        with torch.no_grad():
            expected = teacher.model.forward_features((images - mean) / std)
        torch.testing.assert_close(teacher(images).normalised, expected)
        target = Features("dino", "normalised", "own").build(VIT, {"dino": teacher})
        found = target.one(Inputs(images, images, {}, {"dino": teacher}), None)
        torch.testing.assert_close(found, expected)


def test_another_image_size_interpolates_the_positions(tmp_path: Path) -> None:
    torch.save(official(VIT), tmp_path / "weights.pth")
    task = ReleasedEncoder(weights="weights.pth", encoder=ViT(**{**SIZE, "image": 64}))
    teacher = load_teacher(run(task, tmp_path, tmp_path / "teacher"), grid=(4, 4))
    assert teacher(torch.rand(1, 3, 48, 48)).raw.shape == (1, 17, 32)


def test_a_teacher_stays_frozen(tmp_path: Path) -> None:
    torch.save(official(VIT), tmp_path / "weights.pth")
    task = ReleasedEncoder(weights="weights.pth", encoder=VIT)
    teacher = load_teacher(run(task, tmp_path, tmp_path / "teacher")).train()
    assert not teacher.model.training
    assert not any(each.requires_grad for each in teacher.parameters())


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    work = Work(folder=tmp_path, data=tmp_path)
    with pytest.raises(StageError, match=r"dino_vitbase16_pretrain\.pth is missing: fetch"):
        ReleasedEncoder().run(work)
    state = official(VIT)
    task = ReleasedEncoder(weights="weights.pth", encoder=VIT)
    torch.save(
        {name: item for name, item in state.items() if "norm1" not in name}, tmp_path / task.weights
    )
    with pytest.raises(StageError, match="missing: blocks"):
        task.run(work)
    torch.save(
        {name: torch.zeros_like(item) for name, item in state.items()}, tmp_path / task.weights
    )
    with pytest.raises(StageError, match="are no features"):
        task.run(work)
    torch.save(state, tmp_path / task.weights)
    with pytest.raises(StageError, match="SHA-256 begins with"):
        ReleasedEncoder(weights="weights.pth", encoder=VIT, sha256="ab12").run(work)
    elsewhere = Work(folder=tmp_path / "rank", data=tmp_path, layout=Layout(rank=1, world=2))
    assert task.run(elsewhere) == {} and not elsewhere.folder.exists()


def test_what_a_pretraining_leaves_can_teach(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = VIT.build()
    write_encoder(student.model.state_dict(), VIT, "half", tmp_path)
    teacher = load_teacher(tmp_path, grid=(3, 3))
    images = torch.rand(2, 3, 48, 48)
    encoded = student.eval()((images - 0.5) / 0.5, torch.zeros(2, 9, dtype=torch.bool))
    torch.testing.assert_close(teacher(images).normalised, encoded.norm(encoded.tokens))
    with pytest.raises(StageError, match="a grid of"):
        load_teacher(tmp_path, grid=(4, 4))
    (tmp_path / "encoder.safetensors").write_bytes(b"torn")
    with pytest.raises(StageError, match="no encoder"):
        load_teacher(tmp_path)


def test_a_pretraining_of_the_study_is_the_teacher() -> None:
    """MAE's own row shares the stage; without such a row the plan has the stage all the same."""
    row = StudyRow("maskdistill", "MAE", TEACHER)
    alone = make_plan(Study("s", rows=(row,), evals=("linear",)), load_scale("mini"))
    teacher = alone.rows[0].stages["pretrain"].needs["mae"]
    assert (teacher.kind, teacher.label) == ("pretrain", "mae-s0")
    both = Study("s", methods=("mae",), rows=(row,), evals=("linear",), seeds=(0, 1))
    rows = make_plan(both, load_scale("mini")).rows
    assert rows[0].stages["pretrain"].key == teacher.key
    assert {each.stages["pretrain"].needs["mae"].key for each in rows[2:]} == {teacher.key}
    about = about_stage(alone, teacher, {})
    assert (about["method"], about["variant"], about["seed"]) == ("mae", "", 0)
    task = alone.rows[0].stages["pretrain"].task
    assert count_parameters(task.method, {"mae": teacher.task}) > 0
    assert task.state_size({"mae": teacher.task}).trained > 0


def test_changes_of_a_row_are_not_its_teachers() -> None:
    row = StudyRow("maskdistill", "MAE", {**TEACHER, "optimisation.weight_decay": 0.3})
    plan = make_plan(Study("s", rows=(row,), evals=("linear",)), load_scale("mini"))
    teacher = plan.rows[0].stages["pretrain"].needs["mae"]
    assert teacher.task.method.optimisation.weight_decay == 0.05


def test_a_teacher_cannot_be_taught_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "mini.toml"
    table = '[teachers.clip]\ntype = "PretrainedEncoder"\nmethod = "milan"\n'
    path.write_text(f'base = "mini"\n{table}')
    with pytest.raises(InputError, match=r"teachers.clip: clip is taught by clip"):
        make_plan(Study("s", methods=("milan",), evals=("linear",)), load_scale(str(path)))


def test_the_teachers_of_the_paper_scale() -> None:
    study = load_study("maskdistill-teachers")
    plan = make_plan(study, load_scale("paper"))
    tasks = {stage.label: stage.task for stage in plan.stages.values() if stage.kind == "teacher"}
    assert set(tasks) == {"clip", "clip-l14", "dino", "mae", "beitv2"}
    for row in plan.rows:
        frozen = {role: stage.task for role, stage in row.stages["pretrain"].needs.items()}
        width = 1024 if row.variant == "CLIP-L14" else 768
        assert count_parameters(row.value, frozen) == 85_666_128 + 769 * width
        assert all(task.grid == (14, 14) for task in frozen.values())
    with pytest.raises(InputError, match="scale mini has no teacher 'clip-l14'"):
        make_plan(study, load_scale("mini"))


def test_beit_v2_and_milan_can_be_taught_by_dino() -> None:
    """VQ-KD predicts DINO's 768 channels; MILAN takes its tokens and its attention."""
    plan = make_plan(load_study("beitv2-teachers"), load_scale("paper"))
    tokenizers = [row.stages["pretrain"].needs["vqkd"] for row in plan.rows]
    assert [set(each.needs) for each in tokenizers] == [{"clip"}, {"dino"}]
    sizes = [
        each.task.state_size({role: stage.task for role, stage in each.needs.items()}).trained
        for each in tokenizers
    ]
    assert sizes[1] - sizes[0] == 769 * 256
    changes = {
        "objectives.0.target": {"type": "Features", "teacher": "dino", "tokens": "normalised"},
        "masking.teacher": "dino",
    }
    row = StudyRow("milan", "DINO", changes)
    [row_] = make_plan(Study("s", rows=(row,), evals=("linear",)), load_scale("paper")).rows
    frozen = {role: stage.task for role, stage in row_.stages["pretrain"].needs.items()}
    assert set(frozen) == {"dino"}
    assert count_parameters(row_.value, frozen) == 111_524_352 + 513 * 256
