"""What a stage draws when it has finished: for every method, and never at a stage's expense."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_methods import tiny

import methods
from methods.data.sets import Patchwork
from methods.engine import pictures
from methods.engine.pictures import Strip, heat, photo
from methods.engine.work import Layout, Work
from methods.networks.pictures import strips
from methods.networks.pretrainer import MaskedModelling
from methods.networks.pretraining import load_frozen
from methods.pretrain import Pretraining
from methods.teachers.tokenizer import usage_strip

DATA = Patchwork(train=32, teacher=10, validation=10)
KINDS = {
    "beit": ["probability"],
    "beitv2": ["probability", "probability"],
    "cae": ["probability", "similarity"],
    "cmae": ["reconstruction"],
    "mae": ["reconstruction"],
    "maskdistill": ["similarity"],
    "milan": ["similarity"],
    "simmim": ["reconstruction"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    DATA.prepare(root)
    return root


def drawn(name: str, work: Work) -> list[Strip]:
    """The strips of a method that was never trained."""
    torch.manual_seed(0)
    method = tiny(name)
    trained = MaskedModelling(method, load_frozen(method, work, torch.device("cpu")))
    with torch.no_grad():
        return list(strips(Pretraining(method, DATA), trained, work))


@pytest.mark.parametrize("name", methods.names())
def test_every_method_is_drawn(
    name: str, tmp_path: Path, needs: dict[str, Path], data: Path
) -> None:
    found = drawn(name, Work(folder=tmp_path, needs=needs, data=data))
    attention = ["attention"] if name in ("milan", "maskdistill") else []
    kinds = [strip.name.partition("-")[2] for strip in found]
    assert kinds == ["images", *attention, "mask", *KINDS[name]]
    for strip in found:
        assert [tile.shape for tile in strip.tiles] == [(48, 48, 4)] * 4 and strip.text
    hidden = [(tile[::8, ::8, 3] == 0).sum() for tile in found[1 + len(attention)].tiles]
    masking = tiny(name).masking
    count = masking.count(36)
    assert set(hidden) == {count} if masking.exact else max(hidden) <= count
    pictures.write(tmp_path, found)
    for path in tmp_path.glob("*.png"):
        assert path.stat().st_size < 20_000
        with Image.open(path) as image:
            assert image.size == (4 * 96 + 3 * 4, 96) and image.info["Description"]


def test_a_perfect_reconstruction_is_the_image(
    tmp_path: Path, needs: dict[str, Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predictions that equal the target give the picture back: order and scale of the pixels."""
    work = Work(folder=tmp_path, needs=needs, data=data)
    method = tiny("mae")
    trained = MaskedModelling(method, {})
    monkeypatch.setattr(
        trained.pretrainer, "predict", lambda micro: {"tokens": micro["targets"][0]}
    )
    found = {strip.name: strip for strip in strips(Pretraining(method, DATA), trained, work)}
    for made, real in zip(found["4-reconstruction"].tiles, found["1-images"].tiles, strict=True):
        assert np.abs(made.astype(int) - real).max() <= 1


def test_drawing_moves_no_generator_and_repeats_itself(
    tmp_path: Path, needs: dict[str, Path], data: Path
) -> None:
    work = Work(folder=tmp_path, needs=needs, data=data)
    trained = MaskedModelling(tiny("milan"), load_frozen(tiny("milan"), work, torch.device("cpu")))
    states = []
    for _ in range(2):
        with torch.no_grad():
            found = [*strips(Pretraining(tiny("milan"), DATA), trained, work)]
        global_numpy = np.random.get_state()[1]
        states.append((torch.get_rng_state(), global_numpy, [t for s in found for t in s.tiles]))
    (torch_one, numpy_one, first), (torch_two, numpy_two, second) = states
    assert torch.equal(torch_one, torch_two) and np.array_equal(numpy_one, numpy_two)
    assert all(np.array_equal(*pair) for pair in zip(first, second, strict=True))


def test_a_picture_that_cannot_be_drawn_is_an_alarm(
    tmp_path: Path, needs: dict[str, Path], data: Path
) -> None:
    """Pretraining needs no validation images; without them it has the same weights."""
    shutil.copytree(data, tmp_path / "data")
    work = {name: Work(tmp_path / name, needs, tmp_path / "data") for name in ("with", "without")}
    for name, each in work.items():
        if name == "without":
            shutil.rmtree(DATA.folder(each.data) / "classification" / "validation")
        each.folder.mkdir()
        Pretraining(tiny("mae"), DATA).run(each)
    assert not work["with"].alarms and len([*(tmp_path / "with/pictures").iterdir()]) == 3
    (alarm,) = work["without"].alarms
    assert "no pictures were drawn" in alarm and "validation" in alarm
    weights = [(each.folder / "encoder.safetensors").read_bytes() for each in work.values()]
    assert weights[0] == weights[1]


def test_other_ranks_draw_nothing(tmp_path: Path) -> None:
    work = Work(tmp_path, layout=Layout(rank=1, world=2))
    pictures.draw(work, lambda: pytest.fail("rank 1 drew"))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_values_are_colours_of_rising_lightness() -> None:
    tile = heat(torch.tensor([[0.0, 0.25, 0.5, 0.75, 1.0, torch.nan]]), side=2)
    assert tile.shape == (2, 12, 4)
    assert (tile[..., 3] == np.array([255] * 10 + [0] * 2)).all()
    lightness = tile[0, :10:2, :3] @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > 20).all()


def test_a_large_picture_is_halved_and_a_small_one_doubled() -> None:
    assert [pictures.tile_side(pixels) for pixels in (6, 48, 96, 224, 512)] == [
        96,
        96,
        96,
        112,
        128,
    ]


def test_hidden_patches_are_left_out() -> None:
    seen = torch.tensor([[True, False], [False, True]])
    opacity = photo(torch.ones(3, 4, 4), seen)[..., 3]
    assert opacity.tolist() == [[255, 255, 0, 0]] * 2 + [[0, 0, 255, 255]] * 2


def test_a_codebook_says_how_much_of_it_is_used() -> None:
    strip = usage_strip(torch.tensor([0.0, 6.0, 2.0, 0.0, 0.0]))
    assert "2 of 5 codes are used" in strip.text and "75.00% (bright)" in strip.text
    (tile,) = strip.tiles
    assert tile.shape == (126, 126, 4)
    assert (tile[::42, ::42, 3] == 255).sum() == 2


def test_four_images_are_spread_over_the_split() -> None:
    assert pictures.indices(2000) == [250, 751, 1252, 1753]
    assert pictures.indices(10) == [1, 3, 6, 8]
    assert pictures.indices(2) == [0, 1]
