"""The frozen CLIP equals open_clip's, and the small CLIP's losses equal their definitions."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny_teachers import clip_task, untrained_clip
from torch import Tensor

from methods.engine.work import Layout, Work
from methods.errors import InputError, StageError
from methods.parts.augment import mean_std
from methods.teachers import ClipTraining, Teacher, load_teacher
from methods.teachers.clip_training import (
    ClipTrainable,
    ContrastiveClip,
    TwoViews,
    check_accuracy,
    contrastive_loss,
    equal_rows,
    tokenizer,
    view_loss,
)
from methods.values import from_plain, to_plain


@pytest.fixture()
def images() -> Tensor:
    return torch.rand(3, 3, 48, 48, generator=torch.Generator().manual_seed(1))


def reference(folder: Path, normalised: Tensor) -> dict[str, Tensor]:
    """What open_clip's own modules say, with hooks on the last block."""
    card = json.loads((folder / "clip.json").read_text())["model"]
    vision = open_clip.CLIPVisionCfg(**card.pop("vision_cfg"))
    text = open_clip.CLIPTextCfg(**card.pop("text_cfg"))
    clip = open_clip.CLIP(vision_cfg=vision, text_cfg=text, **card)
    clip.load_state_dict(load_file(folder / "clip.safetensors"))
    clip.eval()
    seen: dict[str, Tensor] = {}
    last = clip.visual.transformer.resblocks[-1]

    def ask(_: Any, args: Any, kwargs: Any) -> Any:
        return args, {**kwargs, "need_weights": True, "average_attn_weights": False}

    def keep(_: Any, __: Any, output: Any) -> None:
        seen["attention"] = output[1]

    last.attn.register_forward_pre_hook(ask, with_kwargs=True)
    last.attn.register_forward_hook(keep)
    last.register_forward_hook(lambda *hooked: seen.update(raw=hooked[-1]))
    clip.visual.ln_post.register_forward_hook(lambda *hooked: seen.update(normalised=hooked[-1]))
    with torch.no_grad():
        seen["pooled"] = clip.encode_image(normalised)
        seen["projected"] = seen["normalised"] @ clip.visual.proj
    return seen


@pytest.mark.parametrize("statistics", ["clip", "imagenet"])
def test_frozen_clip_is_open_clip(teacher_folder: Path, images: Tensor, statistics: str) -> None:
    teacher = load_teacher(teacher_folder, grid=(3, 3))
    output = teacher(images, statistics)
    centre, scale = (torch.tensor(each).view(1, 3, 1, 1) for each in mean_std(statistics))
    expected = reference(teacher_folder, (images - centre) / scale)
    for name in ("raw", "normalised", "projected"):
        torch.testing.assert_close(getattr(output, name), expected[name], rtol=1e-4, atol=1e-5)
        assert output.__getattribute__(name).shape == (3, 10, teacher.widths[name])
    torch.testing.assert_close(output.projected[:, 0], expected["pooled"], rtol=1e-4, atol=1e-5)
    attention = expected["attention"].mean(1)[:, 0, 1:]
    torch.testing.assert_close(output.attention, attention, rtol=1e-4, atol=1e-6)


def test_frozen_clip_stays_frozen(teacher_folder: Path, images: Tensor) -> None:
    teacher = load_teacher(teacher_folder)
    teacher.train()
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    output = teacher(images.requires_grad_())
    assert not output.projected.requires_grad
    assert output.attention.dtype == torch.float32


def test_another_grid_is_refused(teacher_folder: Path) -> None:
    with pytest.raises(StageError, match=r"\(3, 3\)") as refused:
        load_teacher(teacher_folder, grid=(14, 14))
    assert refused.value.reason == "teacher"


def test_other_sizes_are_resized(teacher_folder: Path, images: Tensor) -> None:
    teacher = load_teacher(teacher_folder)
    larger = F.interpolate(images, size=(64, 64), mode="nearest")
    assert teacher(larger).raw.shape == (3, 10, 16)


def test_broken_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"clip\.json"):
        load_teacher(tmp_path)
    untrained_clip(tmp_path)
    weights = tmp_path / "clip.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(StageError, match=r"clip\.safetensors") as refused:
        load_teacher(tmp_path)
    assert refused.value.reason == "needs"


def softmax_loss(logits: np.ndarray, target: np.ndarray) -> float:
    shifted = logits - logits.max(1, keepdims=True)
    log = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return float(-(target * log).sum(1).mean())


def units(seed: int, *shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_contrastive_loss_against_numpy() -> None:
    pictures, sentences = units(0, 5, 4), units(1, 5, 4)
    captions = torch.tensor([[1, 2], [3, 4], [1, 2], [5, 6], [3, 4]])
    same = equal_rows(captions)
    expected_same = np.array([[(a == b).all() for b in captions.numpy()] for a in captions.numpy()])
    assert (same.numpy() == expected_same).all()
    target = expected_same / expected_same.sum(1, keepdims=True)
    logits = 7 * pictures.double().numpy() @ sentences.double().numpy().T
    expected = (softmax_loss(logits, target) + softmax_loss(logits.T, target)) / 2
    found = contrastive_loss(pictures, sentences, same, torch.tensor(7.0))
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_contrastive_loss_without_equal_captions_is_clips() -> None:
    pictures, sentences, scale = units(0, 6, 4), units(1, 6, 4), torch.tensor(5.0)
    expected = open_clip.ClipLoss()(pictures, sentences, scale)
    found = contrastive_loss(pictures, sentences, torch.eye(6, dtype=torch.bool), scale)
    torch.testing.assert_close(found, expected)


def test_view_loss_against_numpy() -> None:
    first, second = units(2, 3, 4), units(3, 3, 4)
    both = np.concatenate([first.numpy(), second.numpy()]).astype(float)
    logits = both @ both.T / 0.1
    total = 0.0
    for row in range(6):
        others = [column for column in range(6) if column != row]
        partner = (row + 3) % 6
        total += np.log(np.exp(logits[row, others]).sum()) - logits[row, partner]
    assert float(view_loss(first, second)) == pytest.approx(total / 6, rel=1e-5)


def test_equal_captions_share_a_pass_but_not_a_gradient() -> None:
    torch.manual_seed(0)
    network = ContrastiveClip(clip_task().model)
    text = tokenizer(16)(["a photo of moon", "a photo of fur", "a photo of moon"])
    images = torch.rand(3, 3, 48, 48)
    loss = network({"image": images, "text": text})["loss"]
    pictures = network.clip.encode_image(images, normalize=True)
    sentences = network.clip.encode_text(text, normalize=True)
    same = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]]).bool()
    expected = contrastive_loss(pictures, sentences, same, network.clip.logit_scale.exp())
    torch.testing.assert_close(loss, expected)
    found = torch.autograd.grad(loss, network.clip.text_projection)[0]
    wanted = torch.autograd.grad(expected, network.clip.text_projection)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_every_parameter_learns_and_the_scale_is_capped() -> None:
    torch.manual_seed(0)
    trainable = ClipTrainable(clip_task(image_image_weight=1.0))
    raw = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    batch = {"image": raw, "other": raw.flip(0), "caption": ["a photo of moon", "a photo of fur"]}
    losses = trainable.network(trainable.prepare(0, [batch])[0])
    total = losses["image_text"] + losses["image_image"]
    torch.testing.assert_close(losses["loss"], total)
    losses["loss"].backward()
    silent = [n for n, p in trainable.network.named_parameters() if p.grad is None]
    assert silent == []
    with torch.no_grad():
        trainable.network.clip.logit_scale.fill_(9.0)
    assert trainable.after_step(0)["logit_scale"] == pytest.approx(100, rel=1e-4)
    grouped = sum(len(group["params"]) for group in trainable.groups())
    assert grouped == len(list(trainable.network.parameters()))


def test_two_views_differ_and_repeat() -> None:
    def views(image: Any, generator: np.random.Generator) -> dict[str, Any]:
        return {"image": torch.from_numpy(generator.normal(size=2) + image)}

    first = TwoViews(views)(1.0, np.random.default_rng(3))
    again = TwoViews(views)(1.0, np.random.default_rng(3))
    assert not torch.equal(first["image"], first["other"])
    assert torch.equal(first["other"], again["other"])


def test_the_vocabulary_ships_with_open_clip() -> None:
    ids = tokenizer(8)(["a photo of moon and brick"])
    assert ids.tolist() == [[49406, 320, 1125, 539, 3293, 537, 9518, 49407]]


def test_training_leaves_a_teacher(scenes: Path, tmp_path: Path) -> None:
    task = clip_task()
    metrics = task.run(Work(folder=tmp_path, data=scenes))
    assert set(metrics) == {"zero_shot"} and 0 <= metrics["zero_shot"] <= 1
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["zero_shot"] == metrics["zero_shot"] and lines[-1]["step"] == 3
    teacher = load_teacher(tmp_path, grid=(3, 3))
    assert teacher.widths == {"raw": 16, "normalised": 16, "projected": 12}
    torch.manual_seed(0)
    start = ContrastiveClip(task.model).clip.visual.state_dict()
    moved = [n for n, t in teacher.visual.state_dict().items() if not torch.equal(t, start[n])]
    assert set(moved) == set(start)


def test_slip_trains(scenes: Path, tmp_path: Path) -> None:
    clip_task(image_image_weight=0.5).run(Work(folder=tmp_path, data=scenes))
    state = load_file(tmp_path / "clip.safetensors")
    assert not any(name.startswith("head") for name in state)
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    total = first["image_text"] + 0.5 * first["image_image"]
    assert first["loss"] == pytest.approx(total, rel=1e-4)


def test_micro_batches_are_refused(scenes: Path, tmp_path: Path) -> None:
    work = Work(folder=tmp_path, data=scenes, layout=Layout(device_batch=4))
    with pytest.raises(StageError, match="negatives") as refused:
        clip_task().run(work)
    assert refused.value.reason == "layout"


def test_a_teacher_from_noise_is_refused(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="noise") as refused:
        clip_task(minimum_zero_shot=10.1).run(Work(folder=tmp_path, data=scenes))
    assert refused.value.reason == "teacher"
    assert not (tmp_path / "clip.json").exists()
    check_accuracy(0.2, 10, 2.0)


def test_values_travel_and_are_checked() -> None:
    task = clip_task()
    assert from_plain(Teacher, to_plain(task), "teachers.clip") == task  # type: ignore[type-abstract]
    assert to_plain(ClipTraining(), sparse=True) == {"type": "ClipTraining"}
    for changed in ({"patch": 7}, {"heads": 3}, {"prompts": ("moon",)}, {"image_image_weight": -1}):
        with pytest.raises(ValueError):
            dataclasses.replace(task, **changed)
    with pytest.raises(InputError, match="did you mean 'ReleasedClip'"):
        from_plain(Teacher, {"type": "ReleaseClip"}, "teachers.clip")  # type: ignore[type-abstract]
