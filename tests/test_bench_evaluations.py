"""The bench of evaluations: our steps and the official ones compute the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness.bench.evaluations import RATES, evaluation_subjects, uncounted
from harness.bench.peer_official import fine_tuning, linear_probe, segmenting
from harness.bench.peer_one_rate import one_rate
from harness.bench.rows import Setting, row
from harness.bench.table import render
from harness.cli import main
from harness.study import load_scale
from methods.engine.optim import build_optimizer

CPU = torch.device("cpu")
TINY = load_scale("tiny")
NAMES = ("linear", "finetune", "segmentation")


@pytest.fixture(autouse=True)
def own_log(request: pytest.FixtureRequest) -> None:
    """mmengine writes to the newest logger, which may be of another test's Runner, and closed."""
    from mmengine.logging import MMLogger

    MMLogger.get_instance(request.node.name)


def subject(name: str) -> Any:
    torch.set_num_threads(1)
    (found,) = evaluation_subjects([name], TINY, "fp32", 4)
    return found


def updates(trainable: Any, value: Any, micro: dict[str, Tensor], count: int) -> list[float]:
    """The losses of so many updates on one batch, as `fit` makes them but for the schedule."""
    optimizer, losses = build_optimizer(trainable.groups(), value), []
    for step in range(count):
        with torch.no_grad():
            prepared = trainable.prepare(step, [micro])
        loss = trainable.module(prepared[0])["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def test_the_official_linear_probe_is_ours_at_its_rate() -> None:
    ours = subject("linear")
    _, network, loss, update = linear_probe(ours.task, {4}, CPU)
    trainable, official = ours.build(), network.state_dict()
    encoder = trainable.frozen["encoder"].encoder
    missing = encoder.load_state_dict(official, strict=False)
    assert not missing.missing_keys
    with torch.no_grad():
        for weight in trainable.module.weights:
            weight.copy_(official["head.1.weight"])
        for bias in trainable.module.biases:
            bias.copy_(official["head.1.bias"])
    assert len(trainable.module.weights) == 1 + len(RATES) == 10
    theirs = []
    for _ in range(3):
        theirs.append(float(loss(4).detach()))
        loss(4).backward()
        update()
    found = updates(trainable, ours.optimisation, ours.sample(4), 3)
    # The loss adds the other heads' and takes them away again.
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(
        trainable.module.weights[0], network.get_parameter("head.1.weight"), rtol=1e-5, atol=1e-6
    )


def test_the_official_fine_tuning_and_ours_have_equal_gradients() -> None:
    ours = subject("finetune")
    _, network, loss, _ = fine_tuning(ours.task, {4}, CPU)
    trainable = ours.build()
    trainable.module.encoder.load_state_dict(network.state_dict())
    prepared = trainable.prepare(0, [ours.sample(4)])
    found = trainable.module.train()(prepared[0])["loss"]
    torch.testing.assert_close(found, loss(4))
    found.backward()
    loss(4).backward()
    theirs = dict(network.named_parameters())
    for name, item in trainable.module.encoder.named_parameters():
        torch.testing.assert_close(item.grad, theirs[name].grad, rtol=1e-4, atol=1e-6)


def test_mmengines_step_and_ours_have_equal_losses() -> None:
    ours = subject("segmentation")
    _, network, loss, _ = segmenting(ours.task, {4}, CPU)
    trainable = ours.build()
    trainable.module.segmentor.load_state_dict(network.state_dict())
    prepared = trainable.prepare(0, [ours.sample(4)])
    torch.manual_seed(0)  # dropout
    found = trainable.module.train()(prepared[0])["loss"]
    torch.manual_seed(0)
    torch.testing.assert_close(found, loss(4), rtol=1e-4, atol=1e-5)


def test_one_rate_alone_is_the_published_one_of_ten() -> None:
    ours = subject("linear")
    _, network, loss, update = one_rate(ours.task, {4}, CPU)
    theirs = []
    for _ in range(3):
        value = loss(4)
        value.backward()
        update()
        theirs.append(float(value.detach()))
    torch.testing.assert_close(
        updates(ours.build(), ours.optimisation, ours.sample(4), 3), theirs, rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_row_beside_the_official_step(name: str) -> None:
    setting = Setting("cpu", batch=4, steps=2, peer="official", threads=1, busy=True)
    found = row(subject(name), setting)
    peer = found["peer"]
    assert (found["name"], peer["name"], peer["precision"]) == (name, "official", "fp32")
    assert peer["ratio"] > 0 and found["seconds"]["forward"] > 0
    # Nine more heads of the probe are a twentieth of so small an encoder.
    assert found["gflop_per_image"] == pytest.approx(peer["gflop_per_image"], rel=0.06)
    found |= uncounted(subject(name))
    assert (found["largest_batch"]["batch"] is None) == (name == "linear")
    text = render([{**found, "scale": "tiny", "machine": _machine()}], "md")
    assert f"| {name} | fp32 |" in text


def _machine() -> dict[str, Any]:
    return {"processor": "p", "cores": 1, "threads": 1, "memory_gb": 1, "versions": {}, "date": "d"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--evals", "lnear"], "did you mean 'linear'"),
        (["--methods", "mae", "--peer", "official"], "--peer official: no step of mae"),
        (["--evals", "finetune", "--peer", "one-rate"], "no step of finetune; it has linear"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["bench", "--scale", "tiny", *words])
    error = capsys.readouterr().err
    assert left.value.code == 2
    assert told in error and len(error.strip().splitlines()) == 1
