"""Patchwork: the same bytes each time, split by photograph region, and true to its labels."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from methods.data import patchwork
from methods.data.ade20k import check
from methods.data.sets import MATERIALS, Patchwork, PatchworkSegmentation
from methods.errors import StageError

SMALL = Patchwork(train=40, teacher=30, validation=20)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    SMALL.prepare(root)
    return root


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_two_builds_are_equal_byte_by_byte(root: Path, tmp_path: Path) -> None:
    SMALL.prepare(tmp_path)
    assert digest(SMALL.folder(root)) == digest(SMALL.folder(tmp_path))
    assert len(digest(SMALL.folder(root))) == 90 + 3 + 2 * 60


def test_other_fields_have_another_folder() -> None:
    values = [Patchwork(), Patchwork(train=50), Patchwork(size=40), Patchwork(seed=1)]
    assert len({value.folder(Path()) for value in values}) == 4
    assert Patchwork().folder(Path()) == PatchworkSegmentation().folder(Path())


def test_seed_and_split_change_the_scenes() -> None:
    scenes = [
        patchwork.scene(3, split, 48, seed).image.tobytes()
        for split, seed in (("train", 0), ("teacher", 0), ("validation", 0), ("train", 1))
    ]
    assert len(set(scenes)) == 4


def test_an_unfinished_build_is_made_again(tmp_path: Path) -> None:
    part = tmp_path / f".{SMALL.folder(tmp_path).name}.part"
    (part / "classification").mkdir(parents=True)
    (part / "classification" / "left over").write_text("half")
    SMALL.prepare(tmp_path)
    assert not part.exists()
    assert not (SMALL.folder(tmp_path) / "classification" / "left over").exists()


def test_two_processes_at_once_build_one_folder(root: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    builders = [context.Process(target=SMALL.prepare, args=(tmp_path,)) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(timeout=120)
    assert [builder.exitcode for builder in builders] == [0, 0]
    assert digest(SMALL.folder(root)) == digest(SMALL.folder(tmp_path))


def test_the_sides_of_a_photograph_do_not_overlap() -> None:
    """The halves come from 70 % and 30 % of the width, and hold a crop at the smallest scale."""
    for material, photograph in patchwork.PHOTOGRAPHS.items():
        left = patchwork.textures(material, "left")
        right = patchwork.textures(material, "right")
        path = patchwork.package_file("skimage", "data", photograph.file)
        with Image.open(path) as image:
            width = image.crop(photograph.box).width
        assert left[0].shape[1] + right[0].shape[1] <= width * photograph.zoom + 1
        assert left[0].shape[1] == pytest.approx(0.7 * width * photograph.zoom, abs=1.5)
        for part in (*left, *right):
            assert min(part.shape[:2]) >= 48, material


@pytest.mark.parametrize("split", ["train", "teacher", "validation"])
def test_a_scene_uses_one_side_only(split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = set()
    true = patchwork.textures

    def spy(material: str, side: patchwork.Side) -> tuple[np.ndarray, ...]:
        asked.add(side)
        return true(material, side)

    monkeypatch.setattr(patchwork, "textures", spy)
    for index in range(20):
        patchwork.scene(index, split, 48, 0)
    assert asked == {"right" if split == "validation" else "left"}


def test_mask_label_and_caption_agree() -> None:
    for index in range(200):
        scene = patchwork.scene(index, "train", 48, 0)
        assert scene.label == index % 10
        assert set(np.unique(scene.mask)) <= set(range(12))
        counts = np.bincount(scene.mask.ravel(), minlength=12)
        assert counts[patchwork.FIRST :].argmax() == scene.label
        assert counts[patchwork.BACKGROUND] > 0
        assert 0 < counts[patchwork.UNLABELLED] < 500
        words = scene.caption.removeprefix("a photo of ").split(" and ")
        assert words[0] == MATERIALS[scene.label]
        assert {MATERIALS.index(word) + 2 for word in words} == set(np.unique(scene.mask)) - {0, 1}


def test_folders_labels_and_captions_agree(root: Path) -> None:
    images = SMALL.open(root, "teacher")
    assert len(images) == 30 and images.classes == SMALL.classes == MATERIALS
    assert np.bincount(images.labels).tolist() == [3] * 10
    assert images.captions is not None
    for index in range(30):
        picture, label = images[index]
        number = int(images.path(index).stem)
        scene = patchwork.scene(number, "teacher", 48, 0)
        assert np.array_equal(np.asarray(picture), scene.image)
        assert (label, images.captions[index]) == (scene.label, scene.caption)


def test_segmentation_has_the_students_scenes(root: Path) -> None:
    value = PatchworkSegmentation(train=40, teacher=30, validation=20)
    ade = value.root(root)
    check(ade, {"training": 40, "validation": 20}, classes=len(value.classes))
    for part, split in (("training", "train"), ("validation", "validation")):
        scene = patchwork.scene(11, split, 48, 0)
        with Image.open(ade / "annotations" / part / "000011.png") as mask:
            assert mask.mode == "L" and np.array_equal(np.asarray(mask), scene.mask)
        with Image.open(ade / "images" / part / "000011.jpg") as image:
            difference = np.asarray(image).astype(int) - scene.image
        assert np.abs(difference).mean() < 4


def test_a_damaged_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="classification/train") as missing:
        SMALL.open(tmp_path, "train")
    assert missing.value.reason == "data"
    SMALL.prepare(tmp_path)
    SMALL.open(tmp_path, "train").path(0).unlink()
    with pytest.raises(StageError, match="39 images"):
        SMALL.open(tmp_path, "train")


def test_captions_are_plain_json(root: Path) -> None:
    path = SMALL.folder(root) / "classification" / "train.captions.json"
    captions = json.loads(path.read_text())
    assert len(captions) == 40 and captions["brick/000000.png"].startswith("a photo of brick")
