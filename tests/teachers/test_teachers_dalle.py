"""DALL-E's discrete VAE: sizes, losses against their definitions, OpenAI's layout, training."""

from __future__ import annotations

import json
import math
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_teachers import SCENES
from torch import Tensor, nn

from methods.engine.work import Layout, Work
from methods.errors import StageError
from methods.parts.optimisation import Optimisation
from methods.teachers import DvaeTraining, ReleasedDalle, Tokenizer, load_tokenizer
from methods.teachers.dalle_network import DalleEncoder, convolution
from methods.teachers.dvae_training import (
    DvaeTrainable,
    annealed,
    gumbel,
    laplace_loss,
    uniform_divergence,
)
from methods.values import from_plain, to_plain

SIZES: dict[str, Any] = {"image": 48, "hidden": 4, "blocks": 1, "codes": 16}


def task(**changed: Any) -> DvaeTraining:
    """Two updates of a tiny discrete VAE."""
    optimisation = Optimisation(epochs=1, batch=12, learning_rate=1e-3)
    known = {**SIZES, "data": SCENES, "optimisation": optimisation, "minimum_usage": 0.0}
    return DvaeTraining(**{**known, **changed})


def test_paper_size() -> None:
    with torch.device("meta"):
        encoder = DalleEncoder(image=112, hidden=256, blocks=2, codes=8192)
        logits = encoder(torch.empty(1, 3, 112, 112))
    assert logits.shape == (1, 8192, 14, 14) and encoder.grid == (14, 14)
    assert sum(item.numel() for item in encoder.parameters()) == 53_786_240


def test_codes_are_the_largest_logits_row_by_row() -> None:
    torch.manual_seed(0)
    encoder, images = DalleEncoder(**SIZES), torch.rand(2, 3, 48, 48)
    logits = encoder.blocks(0.8 * images + 0.1)
    codes = encoder.codes(images)
    assert codes.shape == (2, 36)
    assert torch.equal(codes.view(2, 6, 6), logits.argmax(1))


def test_laplace_loss_against_numpy() -> None:
    images, centre = torch.rand(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    scale = 0.3 * torch.randn(2, 3, 4, 4)
    x = 0.1 + 0.8 * images.double().numpy()
    spread = np.exp(scale.double().numpy())
    distance = np.abs(np.log(x / (1 - x)) - centre.double().numpy())
    density = np.exp(-distance / spread) / (2 * spread * x * (1 - x))
    found = float(laplace_loss(images, centre, scale))
    assert found == pytest.approx(-np.log(density).mean(), rel=1e-5)


def test_divergence_is_zero_for_uniform_and_log_k_for_one_code() -> None:
    assert float(uniform_divergence(torch.zeros(1, 8, 2, 2))) == pytest.approx(0, abs=1e-6)
    certain = torch.zeros(1, 8, 2, 2)
    certain[:, 3] = 100
    assert float(uniform_divergence(certain)) == pytest.approx(math.log(8), rel=1e-5)


def test_temperature_and_noise() -> None:
    heat = [annealed((1.0, 0.1), step, 5) for step in range(5)]
    assert heat[0] == 1 and heat[-1] == pytest.approx(0.1) and heat == sorted(heat, reverse=True)
    noise = gumbel(50, (100,), seed=0, step=3)
    assert torch.equal(noise, gumbel(50, (100,), seed=0, step=3))
    assert not torch.equal(noise, gumbel(50, (100,), seed=0, step=4))
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.08)


def test_noise_does_not_depend_on_micro_batches() -> None:
    images = torch.randint(0, 256, (4, 3, 48, 48), dtype=torch.uint8)
    trainable = DvaeTrainable(task(), 24)
    (whole,) = trainable.prepare(2, [{"image": images}])
    parts = trainable.prepare(2, [{"image": part} for part in images.split(2)])
    assert torch.equal(whole["noise"], torch.cat([part["noise"] for part in parts]))
    trainable.module(whole)["loss"].backward()
    silent = [n for n, p in trainable.module.named_parameters() if p.grad is None]
    assert silent == []


def test_training_leaves_a_tokenizer(scenes: Path, tmp_path: Path) -> None:
    work = Work(folder=tmp_path, data=scenes, layout=Layout(device_batch=6))
    metrics = task().run(work)
    assert set(metrics) == {"usage", "perplexity", "reconstruction"}
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert {name: last[name] for name in metrics} == metrics
    assert (tmp_path / "pictures/1-codebook.png").stat().st_size < 5000 and not work.alarms
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.size, tokenizer.grid, tokenizer.image) == (16, (6, 6), 48)
    assert tokenizer.codes(torch.rand(2, 3, 48, 48)).shape == (2, 36)


def test_a_collapsed_codebook_is_refused(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="collapsed") as refused:
        task(codes=4096, minimum_usage=1.0).run(Work(folder=tmp_path, data=scenes))
    assert refused.value.reason == "codebook"


def official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's names."""
    return {
        name.removesuffix("weight") + "w" if name.endswith("weight") else name[:-4] + "b": tensor
        for name, tensor in state.items()
    }


class Foreign(nn.Module):
    """A module of the foreign package, pickled by reference to its class."""

    def add(self, name: str, tensor: Tensor) -> None:
        first, _, rest = name.partition(".")
        if not rest:
            self.register_parameter(first, nn.Parameter(tensor))
            return
        if first not in self._modules:
            self.add_module(first, type(self)())
        child = self._modules[first]
        assert isinstance(child, Foreign)
        child.add(rest, tensor)


def whole_module(state: dict[str, Tensor], path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file like OpenAI's encoder.pkl: torch.save of a module whose package is not installed."""
    package = types.ModuleType("dall_e")
    Encoder = type("Encoder", (Foreign,), {"__module__": "dall_e"})
    package.Encoder = Encoder  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "dall_e", package)
        module = Encoder()
        for name, tensor in state.items():
            module.add(name, tensor)
        torch.save(module, path)


def test_released_layouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    encoder, images = DalleEncoder(**SIZES), torch.rand(2, 3, 48, 48)
    state = official(encoder.state_dict())
    whole_module(state, tmp_path / "encoder.pkl", monkeypatch)
    torch.save(state, tmp_path / "state.pkl")
    torch.save(state, tmp_path / "state.pt")
    for name in ("encoder.pkl", "state.pkl", "state.pt"):
        folder = tmp_path / f"from-{name}"
        folder.mkdir()
        released = ReleasedDalle(weights=name, image=48)
        assert released.run(Work(folder=folder, data=tmp_path)) == {}
        assert torch.equal(load_tokenizer(folder).codes(images), encoder.codes(images))


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.mark}'",)


def test_hostile_and_foreign_files_are_refused(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    torch.save({"a": Hostile(mark)}, tmp_path / "hostile.pkl")
    torch.save({"a": torch.zeros(2)}, tmp_path / "foreign.pkl")
    (tmp_path / "log.pkl").write_text("a log that was saved in the place of the file")
    for name in ("hostile", "foreign", "log", "missing"):
        with pytest.raises(StageError, match=name) as refused:
            ReleasedDalle(weights=f"{name}.pkl").run(Work(folder=tmp_path, data=tmp_path))
        assert refused.value.reason == "weights" and not mark.exists()


def test_convolutions_start_as_published() -> None:
    torch.manual_seed(0)
    layer = convolution(16, 64, 3)
    assert float(layer.weight.detach().std()) == pytest.approx(1 / 12, rel=0.05)


def test_values_travel_and_are_checked() -> None:
    for value in (task(), ReleasedDalle()):
        plain = to_plain(value)
        assert from_plain(Tokenizer, plain, "tokenizers.dalle") == value  # type: ignore[type-abstract]
    for changed in ({"image": 50}, {"hidden": 6}, {"temperature": (0.1, 1.0)}, {"divergence": -1}):
        with pytest.raises(ValueError):
            task(**changed)
