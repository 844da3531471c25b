"""ImageNet's and ADE20K's folders: what is read, and what is said where something is missing."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from methods.data import ade20k, imagefolder
from methods.data.imagefolder import ImageFolder, check_imagenet, open_imagenet, scan, scan_cached
from methods.data.sets import Ade20k, ImageNet
from methods.errors import InputError, StageError


def save(path: Path, mode: str = "RGB", kind: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (12, 9), 90 if len(mode) == 1 else None).save(path, kind)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b/2.JPEG", "b/1.png", "a/3.jpg"):
        save(tmp_path / "set" / name)
    (tmp_path / "set" / "a" / "notes.txt").write_text("no picture")
    (tmp_path / "set" / "a" / ".hidden.jpg").write_text("no picture")
    (tmp_path / "set" / "README").write_text("no class")
    return tmp_path / "set"


def test_classes_and_files_are_sorted(folder: Path) -> None:
    images = ImageFolder(folder, scan(folder))
    assert images.classes == ("a", "b")
    paths = [str(images.path(index).relative_to(folder)) for index in range(3)]
    assert paths == ["a/3.jpg", "b/1.png", "b/2.JPEG"]
    assert images.labels.tolist() == [0, 1, 1] and images.captions is None
    picture, label = images[2]
    assert picture.mode == "RGB" and picture.size == (12, 9) and label == 1


@pytest.mark.parametrize(
    ("mode", "name"),
    [("L", "x.jpg"), ("CMYK", "x.jpg"), ("RGBA", "x.png"), ("P", "x.png"), ("1", "x.png")],
)
def test_every_mode_is_read_as_rgb(tmp_path: Path, mode: str, name: str) -> None:
    save(tmp_path / name, mode)
    assert imagefolder.read_rgb(tmp_path / name).mode == "RGB"


def test_a_png_called_jpeg_is_read(tmp_path: Path) -> None:
    save(tmp_path / "n02105855_2933.JPEG", kind="png")
    assert imagefolder.read_rgb(tmp_path / "n02105855_2933.JPEG").size == (12, 9)


def test_colours_of_cmyk_survive(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=95)
    red, green, blue = np.asarray(imagefolder.read_rgb(tmp_path / "x.jpg")).mean((0, 1))
    assert red > 240 and green < 15 and blue < 15


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "missing"])
def test_an_unreadable_picture_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "broken.jpg"
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "jpeg")
    contents = {"truncated": stream.getvalue()[:900], "empty": b"", "text": b"<html>not found"}
    if damage != "missing":
        path.write_bytes(contents[damage])
    with pytest.raises(StageError, match=r"broken\.jpg cannot be read") as error:
        imagefolder.read_rgb(path)
    assert error.value.reason == "data"


def test_the_listing_is_remembered_and_follows_changes(folder: Path) -> None:
    assert scan_cached(folder) == scan(folder)
    cache = folder.with_name(".set.listing.json")
    assert cache.exists()
    before = cache.stat().st_mtime_ns
    assert scan_cached(folder) == scan(folder) and cache.stat().st_mtime_ns == before
    save(folder / "a" / "4.jpg")
    os.utime(folder / "a", ns=(1, 1))
    assert scan_cached(folder)["a"] == ["3.jpg", "4.jpg"]
    save(folder / "c" / "1.jpg")
    assert set(scan_cached(folder)) == {"a", "b", "c"}
    cache.write_text("damaged")
    assert scan_cached(folder) == scan(folder)


def test_a_data_folder_that_cannot_be_written_to_is_scanned(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, text: str) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refuse)
    assert scan_cached(folder)["b"] == ["1.png", "2.JPEG"]
    assert [path.name for path in folder.parent.iterdir()] == ["set"]


def test_missing_imagenet_says_what_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"imagenet/train does not exist: get ILSVRC2012"):
        ImageNet().prepare(tmp_path)
    with pytest.raises(StageError, match="ILSVRC2012") as error:
        ImageNet().open(tmp_path, "validation")
    assert error.value.reason == "data"


def test_imagenets_classes_and_counts() -> None:
    classes = ImageNet().classes
    assert len(classes) == 1000 and classes[0] == "n01440764" and classes[999] == "n15075141"
    assert list(classes) == sorted(classes)
    assert ImageNet().images("train") == 1_281_167 and ImageNet().images("validation") == 50_000


def test_an_incomplete_imagenet_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "imagenet" / "val"
    for name in ImageNet().classes[:-1]:
        (folder / name).mkdir(parents=True)
    with pytest.raises(InputError, match=r"n15075141 \(1 in all\)"):
        check_imagenet(folder, 3)
    (folder / "n15075141").mkdir()
    for number in range(3):
        save(folder / "n15075141" / f"{number}.JPEG")
    with pytest.raises(InputError, match="has 3 images instead of 50,000"):
        check_imagenet(folder, 50_000)
    images = open_imagenet(folder, 3, skip=2)
    assert images.labels.tolist() == [999] * 3 and images.skip == 2


def ade(root: Path, values: tuple[int, ...] = (0, 1, 150), count: int = 2) -> Path:
    for part in ("training", "validation"):
        for number in range(count):
            save(root / "images" / part / f"{number}.jpg")
            path = root / "annotations" / part / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray([values] * 3, dtype=np.uint8)).save(path)
    return root


BOTH = {"training": 2, "validation": 2}


def test_ade20k_is_accepted_and_counted(tmp_path: Path) -> None:
    ade20k.check(ade(tmp_path), BOTH)
    with pytest.raises(InputError, match="has 2 images instead of 20,210"):
        ade20k.check(tmp_path, {"training": 20_210})


def test_missing_ade20k_says_what_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ADEChallengeData2016\.zip"):
        Ade20k().prepare(tmp_path)


def test_a_lonely_image_is_named(tmp_path: Path) -> None:
    (ade(tmp_path) / "annotations" / "training" / "1.png").unlink()
    with pytest.raises(InputError, match="training/1 is an image without a mask"):
        ade20k.check(tmp_path, BOTH)


@pytest.mark.parametrize(
    ("values", "message"),
    [((0, 1, 255), "the value 255"), ((0, 151, 2), "the value 151"), ((0, 0, 3), "more than half")],
)
def test_masks_in_another_numbering_are_refused(
    tmp_path: Path, values: tuple[int, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ade20k.check(ade(tmp_path, values), BOTH)


def test_a_mask_in_colour_is_refused(tmp_path: Path) -> None:
    save(ade(tmp_path) / "annotations" / "training" / "0.png")
    with pytest.raises(InputError, match="one byte a pixel"):
        ade20k.check(tmp_path, BOTH)


def test_names_are_mmsegmentations() -> None:
    from mmseg.utils import ade_classes

    assert tuple(name.strip() for name in ade_classes()) == ade20k.CLASSES
    assert Ade20k().images("train") == 20_210 and len(Ade20k().classes) == 150


def test_a_picture_is_given_to_no_other_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EPS under a picture's name: Pillow would start Ghostscript, which runs what is in it."""
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path / 'MARK'}\n")
    (tmp_path / "gs").chmod(0o755)
    save(tmp_path / "a.jpg", kind="EPS")
    with pytest.raises(StageError, match="a.jpg cannot be read"):
        imagefolder.read_rgb(tmp_path / "a.jpg")
    assert not (tmp_path / "MARK").exists()


def test_a_mask_that_claims_to_be_vast(tmp_path: Path) -> None:
    save(tmp_path / "a.png", "L")
    whole = (tmp_path / "a.png").read_bytes()
    header = b"IHDR" + struct.pack(">II", 10**5, 10**5) + whole[24:29]
    vast = whole[:12] + header + struct.pack(">I", zlib.crc32(header)) + whole[33:]
    (tmp_path / "a.png").write_bytes(vast)
    with pytest.raises(InputError, match="a.png cannot be read"):
        ade20k.label_histogram(tmp_path / "a.png")


@pytest.mark.parametrize("content", ["[]", "3", '{"a": 3}', "null", "[" * 10**5, '{"a": [1]}'])
def test_a_damaged_listing_is_made_again(content: str, folder: Path) -> None:
    (folder.parent / ".set.listing.json").write_text(content)
    assert scan_cached(folder) == scan(folder)


@pytest.mark.parametrize("content", ["[]", '{"a/3.jpg": 3}', "{", "null", "[" * 10**5, "\udcff"])
def test_damaged_captions_are_named(content: str, folder: Path) -> None:
    path = folder.parent / "set.captions.json"
    path.write_text(content, errors="surrogateescape")
    with pytest.raises(StageError, match="set.captions.json"):
        imagefolder.open_folder(folder, 3, ("a", "b"))
