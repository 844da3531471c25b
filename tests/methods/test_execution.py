"""A stage trains alike however its blocks are executed: in part, compiled, or a second time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_methods import VARIANTS, loader_batch, tiny
from torch import Tensor, nn
from two_rank_methods import DATA

import methods
from methods.engine.attention import choose_kernels
from methods.engine.drop_path import skip_dropped
from methods.engine.execution import Compiler, blocks, checkpoint_blocks
from methods.engine.work import Layout, Work
from methods.networks.pretrainer import MaskedModelling
from methods.parts.encoder import Beit, ViT
from methods.parts.model import Method
from methods.pretrain import Pretraining

NAMES = (*methods.names(), *VARIANTS)
Frozen = dict[str, nn.Module]
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="inductor needs g++ on a CPU"
)


@pytest.fixture
def inductor() -> Iterator[Any]:
    """Inductor's configuration, with which nothing has been compiled yet; it forgets changes.

    Without vector instructions, which the compiler would be tried with one by one, for seconds.
    """
    config = pytest.importorskip("torch._inductor.config")
    torch.compiler.reset()
    with config.patch({"cpp.simdlen": 1}):
        yield config
    torch.compiler.reset()


def never(text: str) -> None:
    pytest.fail(text)


def dropping(name: str) -> Method:
    """The tiny method with a drop path that a step of 8 images is bound to notice.

    With three blocks, since the first drops nothing and the last may compute some rows alone.
    """
    method = tiny(name)
    depth = {"depth": 3} if isinstance(method.encoder, (ViT, Beit)) else {}
    return replace(method, encoder=replace(method.encoder, drop_path=0.6, **depth))


def subject(method: Method, frozen: Frozen, skip: bool = True) -> tuple[nn.Module, dict[str, Any]]:
    """A fresh network, always the same, and a micro-batch for it.

    skip: whether its blocks compute the samples that drop path keeps alone, as in `fit`.
    """
    torch.manual_seed(0)
    trainable = MaskedModelling(method, {role: frozen[role] for role in method.needs})
    trainable.module.train()
    choose_kernels(trainable.module, torch.device("cpu"), "fp32")
    if skip:
        skip_dropped(trainable.module)
    with torch.no_grad():
        (micro,) = trainable.prepare(0, [loader_batch(method)])
    return trainable.module, micro


def gradients(network: nn.Module, micro: dict[str, Any]) -> dict[str, Tensor]:
    """The loss and every gradient of one step with fixed random numbers."""
    network.zero_grad()
    torch.manual_seed(1)
    loss = network(micro)["loss"]
    loss.backward()
    named = ((name, each.grad) for name, each in network.named_parameters())
    return {"loss": loss.detach(), **{name: each for name, each in named if each is not None}}


def calls(network: nn.Module) -> list[nn.Module]:
    """Grows by one whenever a block begins to be computed."""
    found: list[nn.Module] = []
    for block in blocks(network):
        first = next(block.children())
        first.register_forward_hook(lambda layer, *_: found.append(layer))
    return found


def samples(network: nn.Module) -> list[int]:
    """Grows by the number of samples whenever the second branch of a block is computed."""
    found: list[int] = []
    for block in blocks(network):
        block.mlp.register_forward_hook(lambda _, given, __: found.append(len(given[0])))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_blocks_that_skip_what_is_dropped_have_the_same_gradients(
    frozen: Frozen, name: str
) -> None:
    method = dropping(name)
    (plain, micro), (fast, _) = subject(method, frozen, skip=False), subject(method, frozen)
    whole, part = samples(plain), samples(fast)
    expected, found = gradients(plain, micro), gradients(fast, micro)
    assert len(whole) == len(part)
    if isinstance(method.encoder, (ViT, Beit)):
        assert sum(part) < sum(whole)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_checkpointed_blocks_have_the_same_gradients(frozen: Frozen, name: str) -> None:
    method = dropping(name)
    (plain, micro), (again, _) = subject(method, frozen), subject(method, frozen)
    checkpoint_blocks(again)
    first, second = calls(plain), calls(again)
    expected, found = gradients(plain, micro), gradients(again, micro)
    assert len(second) > len(first)  # the backward pass has computed some blocks anew
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


@pytest.mark.long
@needs_compiler
@pytest.mark.parametrize("name", NAMES)
def test_compiled_blocks_have_the_same_gradients(frozen: Frozen, name: str) -> None:
    """With drop path too: its random numbers are the eager step's."""
    method = dropping(name)
    (plain, micro), (fast, _) = subject(method, frozen), subject(method, frozen)
    compiler = Compiler(fast, never)
    torch.compiler.reset()  # or the graphs of another method's blocks might do
    torch._dynamo.utils.counters.clear()
    expected, found = gradients(plain, micro), gradients(fast, micro)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0 and compiler.on
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        # Some are nothing but rounding: a bias before a batch norm has none.
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5, msg=key)


def trained(method: Method, needs: dict[str, Path], folder: Path, layout: Layout) -> Work:
    folder.mkdir()
    roles = {role: needs[role] for role in method.needs}
    work = Work(folder, needs=roles, data=folder.parent / "data", layout=layout)
    DATA.prepare(work.data)
    Pretraining(method, DATA).run(work)
    return work


def losses(work: Work) -> list[float]:
    return [json.loads(line)["loss"] for line in work.metrics.read_text().splitlines()]


def short() -> Method:
    """MAE with one block that is compiled; its decoder's computes hidden rows alone."""
    method = tiny("mae")
    encoder, decoder = replace(method.encoder, depth=1), replace(method.decoder, depth=1)
    return replace(method, encoder=encoder, decoder=decoder)


@needs_compiler
def test_a_stage_trains_alike_compiled_and_checkpointed(
    needs: dict[str, Path], tmp_path: Path, inductor: Any
) -> None:
    plain = trained(short(), needs, tmp_path / "plain", Layout())
    layout = Layout(compile=True, activation_checkpointing=True)
    fast = trained(short(), needs, tmp_path / "fast", layout)
    assert plain.report["execution"] == "eager"
    assert fast.report["execution"] == "compiled, activation checkpointing" and not fast.alarms
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert len(losses(plain)) == 4
    assert losses(fast) == pytest.approx(losses(plain), rel=1e-5)


def test_without_a_compiler_a_stage_trains_eagerly_and_says_so(
    needs: dict[str, Path], tmp_path: Path, inductor: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = trained(short(), needs, tmp_path / "plain", Layout())
    with inductor.patch({"cpp.cxx": ("/no/such/compiler",), "force_disable_caches": True}):
        fallen = trained(short(), needs, tmp_path / "fallen", Layout(compile=True))
    (alarm,) = fallen.alarms
    assert alarm.startswith("not compiled, trained without: torch.compile failed: ")
    assert f"warning: {alarm}" in capsys.readouterr().out
    assert fallen.report["execution"] == "eager"
    assert losses(fallen) == losses(plain)
