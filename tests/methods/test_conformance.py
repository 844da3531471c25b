"""What every method must hold, whatever its parts."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from tiny_methods import VARIANTS, loader_batch, split, tiny

import methods
from methods.errors import InputError, StageError
from methods.networks.export import write_encoder
from methods.networks.pretrainer import MaskedModelling
from methods.parts.model import Method
from methods.values import from_plain, to_plain, with_fields

NAMES = methods.names()
CASES = (*NAMES, *VARIANTS)
KINDS = ("linear", "finetune", "segmentation", "knn")


def trainable(name: str, frozen: dict[str, Any]) -> MaskedModelling:
    torch.manual_seed(0)
    return MaskedModelling(tiny(name), frozen)


def losses(network: MaskedModelling, micros: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The global means, weighted as the training loop does."""
    with torch.no_grad():
        prepared = network.prepare(0, micros)
    weights = [float(micro.get("weight", len(micro["image"]))) for micro in prepared]
    total: dict[str, torch.Tensor] = {}
    for micro, weight in zip(prepared, weights, strict=True):
        for name, value in network.module(micro).items():
            total[name] = total.get(name, torch.zeros(())) + value * (weight / sum(weights))
    return total


def test_the_registry_needs_no_torch() -> None:
    code = (
        "import sys, methods; [methods.get(n).check() for n in methods.names()]; "
        "assert 'torch' not in sys.modules and 'timm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_registry_knows_the_comparison() -> None:
    known = {"milan", "beitv2", "maskdistill", "mae", "simmim", "beit", "cae", "cmae"}
    assert known <= set(NAMES)
    with pytest.raises(InputError, match="did you mean 'milan'"):
        methods.get("miln")


@pytest.mark.parametrize("name", NAMES)
def test_values_survive_plain_data(name: str) -> None:
    method = methods.get(name)
    assert method.name == name
    for sparse in (False, True):
        plain = json.loads(json.dumps(to_plain(method, sparse)))
        assert from_plain(Method, plain, name) == method


@pytest.mark.parametrize("name", NAMES)
def test_published_schedules_are_methods_too(name: str) -> None:
    for changes in methods.schedules(name).values():
        mine = {path: each for path, each in changes.items() if path.split(".")[0] not in KINDS}
        with_fields(methods.get(name), mine, name).check()


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_gets_a_gradient(name: str, frozen: dict[str, Any]) -> None:
    """So that distributed training need not look for unused parameters."""
    network = trainable(name, frozen)
    losses(network, [loader_batch(network.method)])["loss"].backward()
    without = [
        each
        for each, item in network.module.named_parameters()
        if item.requires_grad and (item.grad is None or not torch.isfinite(item.grad).all())
    ]
    assert not without


@pytest.mark.parametrize("name", CASES)
def test_groups_hold_every_trainable_parameter_once(name: str, frozen: dict[str, Any]) -> None:
    network = trainable(name, frozen)
    grouped = [id(item) for group in network.groups() for item in group["params"]]
    wanted = [id(item) for item in network.module.parameters() if item.requires_grad]
    assert sorted(grouped) == sorted(wanted)


@pytest.mark.parametrize("name", CASES)
def test_the_loss_falls(name: str, frozen: dict[str, Any]) -> None:
    network = trainable(name, frozen)
    optimizer = torch.optim.AdamW(network.module.parameters(), lr=3e-3)
    batch = loader_batch(network.method)
    values = []
    for step in range(40):
        loss = losses(network, [batch])["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        network.after_step(step)
        values.append(loss.item())
    assert np.isfinite(values).all()
    assert np.mean(values[-5:]) < 0.97 * np.mean(values[:3])


@pytest.mark.parametrize("name", CASES)
def test_micro_batches_do_not_change_the_loss(name: str, frozen: dict[str, Any]) -> None:
    network = trainable(name, frozen)
    network.module.eval()
    batch = loader_batch(network.method)
    if network.method.whole_batch:
        with pytest.raises(StageError, match="at once"):
            losses(network, split(batch, 2))
        return
    whole, parts = (losses(network, split(batch, count)) for count in (1, 4))
    for each in whole:
        torch.testing.assert_close(whole[each], parts[each], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_the_exported_encoder_is_plain_timm(
    name: str, frozen: dict[str, Any], tmp_path: Path
) -> None:
    network = trainable(name, frozen)
    student, method = network.pretrainer.encoder.eval(), network.method
    write_encoder(student.model.state_dict(), method.encoder, "imagenet", tmp_path)
    about = json.loads((tmp_path / "encoder.json").read_text())
    model = timm.create_model(about["model"], **about["arguments"]).eval()
    model.load_state_dict(load_file(tmp_path / "encoder.safetensors"), strict=True)
    images = torch.randn(2, 3, 48, 48)
    patches = math.prod(method.encoder.grid)
    with torch.no_grad():
        encoded = student(images, torch.zeros(2, patches, dtype=torch.bool))
        features = model.forward_features(images)
        if features.ndim == 4:  # a Swin's map
            features = features.flatten(1, 2)
        torch.testing.assert_close(encoded.norm(encoded.tokens), features)
    assert about["kind"] == type(method.encoder).__name__ and len(about["std"]) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "encoder.json",
        "encoder.safetensors",
    ]


@pytest.mark.parametrize("name", CASES)
def test_half_precision_keeps_the_loss(name: str, frozen: dict[str, Any]) -> None:
    network = trainable(name, frozen)
    network.module.eval()
    batch = loader_batch(network.method)
    full = losses(network, [batch])["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        half = losses(network, [batch])["loss"]
    assert half.dtype == torch.float32
    # Codes and masks may flip where a teacher's bfloat16 numbers are close to each other.
    assert half.item() == pytest.approx(full.item(), rel=0.1)


@pytest.mark.parametrize(
    "path, plain, part",
    [
        ("decoder", {"type": "LinearHead"}, "decoder"),
        ("masking", {"type": "Blockwise", "exact": False}, "masking"),
        ("augmentation.size", 192, "augmentation.size"),
        ("objectives.0.prediction", "aggregated", "objectives"),
        ("objectives.0.loss", {"type": "CrossEntropy"}, "objectives.0"),
        ("objectives.0.where", "image", "objectives.0"),
        ("masking", {"type": "Cells", "cell": 4}, "cell"),
        ("masking.ratio", 0.999, "masking"),
    ],
)
def test_parts_that_do_not_fit_are_named(path: str, plain: Any, part: str) -> None:
    method = with_fields(methods.get("milan"), {path: plain}, "a study")
    with pytest.raises(ValueError, match=part):
        method.check()


def test_aggregation_starts_within_the_encoder() -> None:
    method = with_fields(methods.get("beitv2"), {"encoder.depth": 9}, "a study")
    with pytest.raises(ValueError, match="early_layer"):
        method.check()
