"""The Swin student: sizes, hidden cells, and targets of several tokens a cell."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny_methods import SWIN, loader_batch, tiny
from torch import Tensor, nn

import methods
from methods.errors import StageError
from methods.networks.export import write_encoder
from methods.networks.pretrainer import MaskedModelling, Pretrainer
from methods.networks.pretraining import check_cells, count_parameters
from methods.networks.swin_names import to_mmpretrain
from methods.networks.targets import fold
from methods.parts.encoder import ViT
from methods.parts.swin import Swin
from methods.released import export_encoder, import_encoder
from methods.teachers import load_teacher
from methods.values import with_fields

TINY = Swin(**SWIN, window=3)
EVALS = ("linear", "finetune", "segmentation", "knn")


def test_sizes_are_swin_bs() -> None:
    """86,743,224 in the encoder of timm's Swin-B (87,768,224 with its head of 1000 classes)."""
    for value, count in ((Swin(), 86_743_224), (Swin(image=192, window=6), 86_725_176)):
        with torch.device("meta"):
            student = value.build()
        assert sum(each.numel() for each in student.model.parameters()) == count
        assert sum(each.numel() for each in student.parameters()) == count + 128
        assert (value.state_size.trained, value.state_size.exported) == (count + 128, count)
    assert (Swin().describe(), Swin().grid, Swin().width) == ("Swin-B", (7, 7), 1024)
    assert TINY.describe() == "Swin-5x8"


def test_simmims_swin_is_the_published_one() -> None:
    """22 of 36 cells of 32 pixels; the head is a 1 x 1 convolution to 32 x 32 x 3 numbers."""
    schedule = methods.schedules("simmim")["swin"]
    mine = {path: each for path, each in schedule.items() if path.split(".")[0] not in EVALS}
    method = with_fields(methods.get("simmim"), mine, "simmim")
    method.check()
    assert method.encoder.grid == (6, 6) and method.masking.count(36) == 22
    assert count_parameters(method, {}) == 86_725_304 + 1024 * 3072 + 3072
    assert method.optimisation.peak == pytest.approx(8e-4)
    assert method.optimisation.warmup_start * method.optimisation.peak == pytest.approx(4e-6)


def test_it_starts_as_simmims_does() -> None:
    torch.manual_seed(0)
    student = Swin(**{**SWIN, "embedding": 32, "heads": (1, 2, 4, 8)}, window=3).build()
    model = student.requires_grad_(False).model
    for block in (model.layers[0].blocks[0], model.layers[3].blocks[0]):
        assert float(block.mlp.fc1.weight.std()) == pytest.approx(0.02, rel=0.05)
        assert not block.attn.qkv.bias.any()
        assert block.attn.relative_position_bias_table.any()
    assert float(student.mask_token.std()) == pytest.approx(0.02, rel=0.5)
    head = nn.Linear(300, 300).requires_grad_(False)
    student.initialise(head)
    assert float(head.weight.std()) == pytest.approx(0.02, rel=0.05) and not head.bias.any()


def test_hidden_cells_change_nothing() -> None:
    torch.manual_seed(0)
    student = TINY.build().eval()
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, :4], mask[1, [2, 7]] = True, True
    images = torch.randn(2, 3, 48, 48)
    other = images.clone()
    for image in range(2):
        for cell in mask[image].nonzero().flatten().tolist():
            row, column = divmod(cell, 3)
            other[image, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 9.0
    first, second = student(images, mask), student(other, mask)
    torch.testing.assert_close(first.tokens, second.tokens)
    assert first.tokens.shape == (2, 9, 64)
    assert first.order[0].tolist() == [4, 5, 6, 7, 8, 0, 1, 2, 3]
    shown = student(images, torch.zeros_like(mask))
    assert not torch.allclose(shown.tokens, first.tokens)
    with pytest.raises(ValueError, match="stages"):
        student(images, mask, early_layer=1)


def test_tokens_of_a_cell_lie_together() -> None:
    """In raster order of cells, and of the teacher's tokens within one."""
    rows, columns = torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij")
    tokens = torch.stack([rows, columns], dim=-1).flatten(0, 1)
    tokens = torch.cat([torch.full((1, 2), -1), tokens])[None]
    cells = fold(tokens, (3, 3), 4)
    assert cells.shape == (1, 9, 4, 2)
    assert cells[0, 5].tolist() == [[2, 4], [2, 5], [3, 4], [3, 5]]


def test_maskdistill_predicts_each_of_the_teachers_tokens(frozen: dict[str, Any]) -> None:
    method = tiny("maskdistill-swin")
    torch.manual_seed(0)
    network = MaskedModelling(method, frozen)
    batch = loader_batch(method)
    [micro] = network.prepare(0, [batch])
    hidden = int(micro["mask"].sum())
    [target] = micro["targets"]
    assert target.shape == (hidden, 4, 32) and hidden == 8 * method.masking.count(9)
    predictions = network.pretrainer.predict(micro)["tokens"]
    assert predictions.shape == target.shape
    teacher = frozen["clip"](batch["image"].float() / 255, "clip").normalised[:, 1:]
    expected = F.layer_norm(teacher, (32,), eps=1e-6).view(8, 6, 6, 32)
    image, cell = (each.tolist()[0] for each in micro["mask"].nonzero(as_tuple=True))
    row, column = divmod(cell, 3)
    square = expected[image, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
    torch.testing.assert_close(target[0], square.flatten(0, 1))
    tasks = {"clip": SimpleNamespace(widths={"normalised": 32}, grid=(6, 6))}
    width = method.objectives[0].target.channels(method.encoder, tasks)
    assert width == 128 == network.pretrainer.decoder.head.out_features


def test_simmims_loss_is_that_of_its_pixel_shuffle(frozen: dict[str, Any]) -> None:
    """models/simmim.py: a 1 x 1 convolution, a pixel shuffle, L1 over hidden pixels."""
    method = tiny("simmim-swin")
    torch.manual_seed(0)
    network = MaskedModelling(method, frozen)
    [micro] = network.prepare(0, [loader_batch(method)])
    head = network.pretrainer.decoder.head
    shuffled = nn.Conv2d(64, 768, 1)
    with torch.no_grad():
        # Its channels come before the pixels of a cell, ours after them.
        order = torch.arange(768).view(16, 16, 3).permute(2, 0, 1).flatten()
        shuffled.weight.copy_(head.weight[order, :, None, None])
        shuffled.bias.copy_(head.bias[order])
        encoded = network.pretrainer.encoder.eval()(micro["image"], micro["mask"])
        maps = encoded.norm(encoded.tokens).transpose(1, 2).unflatten(2, (3, 3))
        image = F.pixel_shuffle(shuffled(maps), 16)
        mask = micro["mask"].view(-1, 1, 3, 3).float()
        mask = mask.repeat_interleave(16, 2).repeat_interleave(16, 3)
        error = (F.l1_loss(micro["image"], image, reduction="none") * mask).sum()
        expected = error / mask.sum() / 3
        found = network.pretrainer(micro)["loss"]
    torch.testing.assert_close(found, expected)


def simmims(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """SimMIM's checkpoint: mergings end a stage, indices and masks are buffers."""
    found = {}
    for name, item in state.items():
        name = re.sub(r"layers\.(\d)\.down", lambda m: f"layers.{int(m[1]) - 1}.down", name)
        found[f"encoder.{name}"] = item
    place = "encoder.layers.0.blocks.0"
    extra = {f"{place}.attn.relative_position_index": torch.zeros(9, 9, dtype=torch.int64)}
    extra |= {f"{place}.attn_mask": torch.zeros(4, 9, 9), "encoder.mask_token": torch.zeros(3)}
    return {**found, **extra, "decoder.0.bias": torch.zeros(5)}


@pytest.mark.parametrize("layout", ["simmim", "mmpretrain", "timm"])
def test_released_swins_come_in_and_go_out(layout: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = TINY.build().model.state_dict()
    state = {name: torch.randn_like(item) for name, item in state.items()}
    layouts, ours = {"simmim": simmims, "mmpretrain": to_mmpretrain, "timm": dict}, tmp_path / "in"
    torch.save({"model": layouts[layout](state)}, tmp_path / "file.pth")
    found = import_encoder(tmp_path / "file.pth", TINY, "imagenet", ours)
    assert (found.loaded, len(found.left_out)) == (len(state), 4 if layout == "simmim" else 0)
    loaded = load_file(ours / "encoder.safetensors")
    assert loaded.keys() == state.keys()
    assert all(torch.equal(item, state[name]) for name, item in loaded.items())
    export_encoder(ours, tmp_path / "out.pth", "mmpretrain")
    again = import_encoder(tmp_path / "out.pth", TINY, "imagenet", tmp_path / "again")
    assert again.loaded == len(state)
    loaded = load_file(tmp_path / "again" / "encoder.safetensors")
    assert all(torch.equal(item, state[name]) for name, item in loaded.items())


def test_other_swins_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    torch.save(TINY.build().model.state_dict(), path)
    with pytest.raises(StageError, match="of another shape"):
        import_encoder(path, dataclasses.replace(TINY, window=6), "imagenet", None)
    torch.save(ViT(48, 8, 32, 2, 2).build().model.state_dict(), path)
    with pytest.raises(StageError, match="do not fit"):
        import_encoder(path, TINY, "imagenet", None)
    with pytest.raises(StageError, match="no class token"):
        write_encoder(TINY.build().model.state_dict(), TINY, "imagenet", tmp_path / "swin")
        load_teacher(tmp_path / "swin")


@pytest.mark.parametrize(
    "name, changes, part",
    [
        ("maskdistill", {"objectives.0.where": "all"}, "class token"),
        ("maskdistill", {"masking": {"type": "SemanticAware", "ratio": 0.5}}, "masking"),
        ("maskdistill", {"decoder": {"type": "Transformer"}}, "decoder"),
        ("beitv2", {}, "PatchAggregation needs an encoder with a class token"),
        ("simmim", {}, "cell"),
        ("simmim", {"masking.cell": 1, "encoder": {"type": "Swin", "image": 192}}, "size"),
    ],
)
def test_parts_that_do_not_fit_a_swin(name: str, changes: dict[str, Any], part: str) -> None:
    method = with_fields(methods.get(name), {"encoder": {"type": "Swin"}, **changes}, "a study")
    with pytest.raises(ValueError, match=part):
        method.check()


def test_a_teachers_grid_must_be_divided() -> None:
    method = with_fields(methods.get("maskdistill"), {"encoder": {"type": "Swin"}}, "a study")
    for grid in ((7, 7), (14, 14), (21, 21)):
        check_cells("clip", SimpleNamespace(grid=grid), method)
    for grid in ((12, 12), (3, 3), (14, 7)):
        with pytest.raises(StageError, match="do not divide"):
            check_cells("clip", SimpleNamespace(grid=grid), method)


def test_pretraining_of_the_paper_scale_builds() -> None:
    method = with_fields(methods.get("maskdistill"), {"encoder": {"type": "Swin"}}, "a study")
    frozen = {"clip": SimpleNamespace(widths={"normalised": 768}, grid=(14, 14))}
    with torch.device("meta"):
        network = Pretrainer(method, frozen)
    assert network.decoder.head.out_features == 4 * 768
    assert method.state_size(frozen).trained == 86_743_352 + 1025 * 3072
    assert method.masking.count(49) == 20  # of 49 cells; 78 of 196 patches


@pytest.mark.parametrize(
    "changes, name",
    [
        ({"image": 100}, "image"),
        ({"heads": (3, 8, 16, 32)}, "heads"),
        ({"heads": (4, 8, 16)}, "depths and heads"),
        ({"depths": (2, 2, 0, 2)}, "depths and heads"),
        ({"window": 0}, "window"),
        ({"drop_path": 1.0}, "drop_path"),
    ],
)
def test_wrong_values_are_named(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Swin(**changes)
