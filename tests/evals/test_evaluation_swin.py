"""Evaluations of a Swin: its last map, its own norm, its four stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from tiny_evaluations import finetune, knn, linear, segmentation

from evals.encoders import build_frozen, features, source
from evals.finetune_training import build_classifier
from evals.segmentation_model import build_segmentor
from evals.segmentation_training import Segmenting, SegmentorLoss
from methods.engine.work import Work
from methods.errors import StageError
from methods.parts.swin import Swin

TINY = Swin(48, stem=2, embedding=8, depths=(1, 1, 2, 1), heads=(1, 1, 2, 2), window=3)
IMAGES = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
Make, Export = Callable[..., Work], Callable[..., Path]


def test_frozen_features_are_the_mean_of_plain_timms_map(work: Make, exported: Export) -> None:
    folder = exported(TINY)
    name, arguments = TINY.timm()
    plain = timm.create_model(name, **arguments).eval()
    plain.load_state_dict(load_file(folder / "encoder.safetensors"))
    found = source(work(needs={"encoder": folder}), TINY, 0, "imagenet")
    frozen = build_frozen(found, torch.device("cpu"))
    maps = plain.forward_features(IMAGES)
    torch.testing.assert_close(features(frozen, IMAGES, "mean", None), maps.mean((1, 2)))
    assert features(frozen, IMAGES, "mean", 1).shape == (2, 16)
    with pytest.raises(StageError, match="no class token"):
        features(frozen, IMAGES, "class", None)


def test_fine_tuning_keeps_the_norm_and_has_a_fresh_head(work: Make, exported: Export) -> None:
    work_ = work(needs={"encoder": exported(TINY)})
    classifier = build_classifier(finetune(TINY), work_).eval()
    state = load_file(work_.needs["encoder"] / "encoder.safetensors")
    own = classifier.encoder.state_dict()
    assert all(torch.equal(own[name], item) for name, item in state.items())
    assert set(own) - set(state) == {"head.fc.weight", "head.fc.bias"}
    head = classifier.encoder.head.fc.weight
    assert 0 < float(head.detach().std()) < 1e-4
    with torch.no_grad():
        expected = classifier.encoder.forward_features(IMAGES).mean((1, 2)) @ head.T
        torch.testing.assert_close(classifier.encoder(IMAGES), expected)


@pytest.mark.parametrize(
    "make",
    [
        linear,
        knn,
        *(pytest.param(each, marks=pytest.mark.long) for each in (finetune, segmentation)),
    ],
)
def test_every_evaluation_runs(make: Callable[..., object], work: Make, exported: Export) -> None:
    pooling = {"pooling": "mean"} if make in (linear, knn) else {}
    work_ = work(needs={"encoder": exported(TINY)})
    metrics = make(TINY, **pooling).run(work_)  # type: ignore[attr-defined]
    assert all(0 <= value <= 100 for name, value in metrics.items() if name != "best_rate")


def test_segmentation_reads_four_stages_with_norms(work: Make, exported: Export) -> None:
    task = segmentation(TINY)
    work_ = work(needs={"encoder": exported(TINY)})
    found = source(work_, TINY, 0, "imagenet")
    module = SegmentorLoss(build_segmentor(task, found))
    maps = module.segmentor.backbone.eval()(IMAGES)
    sizes = [(8, 24), (16, 12), (32, 6), (64, 3)]
    assert [(each.shape[1], each.shape[2]) for each in maps] == sizes
    raw = build_frozen(found, torch.device("cpu")).forward_intermediates(
        IMAGES, norm=False, intermediates_only=True
    )
    for ours, theirs in zip(maps, raw, strict=True):
        expected = torch.nn.functional.layer_norm(theirs.movedim(1, -1), theirs.shape[1:2])
        torch.testing.assert_close(ours, expected.movedim(-1, 1), rtol=1e-4, atol=1e-4)
    small = module.segmentor.backbone(IMAGES[:, :, :30])
    assert [each.shape[2] for each in small] == [15, 8, 4, 2]
    groups = Segmenting(module, task).groups()
    found_scales = {id(item): group["lr_scale"] for group in groups for item in group["params"]}
    encoder = module.segmentor.backbone.encoder
    assert found_scales[id(encoder.layers[3].blocks[0].attn.proj.weight)] == pytest.approx(0.65)
    assert found_scales[id(encoder.layers[3].downsample.reduction.weight)] == pytest.approx(0.65**2)
    assert found_scales[id(module.segmentor.backbone.norms[0].weight)] == 1.0
    micro = {
        "inputs": torch.randn(4, 3, 48, 48),
        "labels": torch.randint(0, 11, (4, 1, 48, 48)).to(torch.uint8),
    }
    module.train()(micro)["loss"].backward()
    assert [name for name, item in module.named_parameters() if item.grad is None] == []
    trained = sum(item.numel() for item in module.parameters())
    assert task.state_size({}).trained == trained
    held = sum(item.numel() for item in module.state_dict().values())
    assert held - trained == task.state_size({}).fixed
    with pytest.raises(StageError, match="four stages"):
        build_segmentor(replace(task, blocks=(0, 1, 2, 3)), found)


def test_another_size_of_crop_keeps_the_windows(work: Make, exported: Export) -> None:
    task = replace(segmentation(TINY), crop=64)
    found = source(work(needs={"encoder": exported(TINY)}), TINY, 0, "imagenet")
    backbone = build_segmentor(task, found).backbone.eval()
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 64, 64))
    assert [each.shape[2] for each in maps] == [32, 16, 8, 4]
