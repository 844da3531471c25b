"""Images in one folder per class: Patchwork's and ImageNet's."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from methods.data.wheels import package_file
from methods.errors import InputError, StageError

EXTENSIONS = (".jpeg", ".jpg", ".png", ".bmp", ".ppm", ".tif", ".tiff", ".webp")
# By content, not by name: of others Pillow would hand EPS to Ghostscript, a program in itself.
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP", "GIF")
BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

FETCH_IMAGENET = (
    "get ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from image-net.org (registration) and "
    "unpack them to imagenet/train/<synset>/*.JPEG and imagenet/val/<synset>/*.JPEG under the data "
    "folder"
)

Listing = dict[str, list[str]]
"""Class -> sorted file names."""


class ImageFolder:
    """folder/<class>/<image>: [i] is (RGB picture, label); classes and files in sorted order.

    `labels` is int64 (n,), `captions` one text for each image or None, `skip` how many unreadable
    images a stream may replace, `keep` whether pictures stay in memory once they were read.
    """

    def __init__(
        self,
        folder: Path,
        listing: Listing,
        captions: dict[str, str] | None = None,
        skip: int = 0,
        keep: bool = False,
    ) -> None:
        self.folder = folder
        self.classes = tuple(sorted(listing))
        self.skip = skip
        names = [f"{name}/{file}" for name in self.classes for file in listing[name]]
        # Arrays instead of lists: reading a list's strings would copy its pages in every worker.
        self._names = np.asarray([os.fsencode(name) for name in names])
        counts = [len(listing[name]) for name in self.classes]
        self.labels = np.repeat(np.arange(len(counts)), counts)
        self._kept: dict[int, Image.Image] | None = {} if keep else None
        self.captions = None if captions is None else [captions[name] for name in names]

    def __len__(self) -> int:
        return len(self._names)

    def path(self, index: int) -> Path:
        """Where image `index` lies."""
        return self.folder / os.fsdecode(bytes(self._names[index]))

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """(RGB picture, label); StageError("data") naming the file where it cannot be read."""
        return self._picture(index), int(self.labels[index])

    def _picture(self, index: int) -> Image.Image:
        if self._kept is None:
            return read_rgb(self.path(index))
        if index not in self._kept:
            self._kept[index] = read_rgb(self.path(index))
        return self._kept[index]


def read_rgb(path: Path) -> Image.Image:
    """The picture in RGB, whatever its mode (some of ImageNet are grey or CMYK)."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.convert("RGB")
    except BROKEN as error:
        raise StageError("data", f"{path} cannot be read: {error}") from error


def scan(folder: Path) -> Listing:
    """The images of each class; hidden files and other extensions are left out."""
    return {entry.name: _files(entry.path) for entry in _folders(folder)}


def scan_cached(folder: Path) -> Listing:
    """`scan`, remembered in a file beside the folder; a class is read again when it changed.

    ImageNet's 1.3 million names take a network file system a minute, its 1000 folders a second.
    """
    cache = folder.with_name(f".{folder.name}.listing.json")
    known: dict[str, tuple[int, list[str]]] = {}
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
        known = {
            name: (time, files) for name, (time, files) in json.loads(cache.read_text()).items()
        }
    found = {}
    for entry in _folders(folder):
        time = entry.stat().st_mtime_ns
        before = known.get(entry.name)
        found[entry.name] = before if before and before[0] == time else (time, _files(entry.path))
    if found != known:
        _remember(cache, found)
    return {name: files for name, (_, files) in found.items()}


def _remember(cache: Path, found: dict[str, tuple[int, list[str]]]) -> None:
    # A data folder that cannot be written to is no error: it is only scanned each time.
    part = cache.with_name(f"{cache.name}.{os.uname().nodename}.{os.getpid()}")
    with contextlib.suppress(OSError):
        part.write_text(json.dumps(found))
        part.replace(cache)


def _folders(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(
            (e for e in entries if e.is_dir() and not e.name.startswith(".")), key=lambda e: e.name
        )


def _files(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        names = (entry.name for entry in entries)
        return sorted(n for n in names if n.lower().endswith(EXTENSIONS) and n[0] != ".")


def open_folder(folder: Path, expected: int, classes: tuple[str, ...]) -> ImageFolder:
    """A small folder with its captions, if <folder>.captions.json lies beside it.

    StageError("data") where it is missing or has other classes or another number of images.
    """
    try:
        listing = scan(folder)
        captions = _captions(folder.with_name(f"{folder.name}.captions.json"))
        images = ImageFolder(folder, listing, captions, keep=True)
    except (OSError, ValueError, KeyError) as error:
        raise StageError("data", f"{folder} is missing or damaged: {error}") from error
    if images.classes != classes or len(images) != expected:
        raise StageError(
            "data",
            f"{folder} has {len(images)} images in {len(images.classes)} classes instead of "
            f"{expected} in {len(classes)}: remove the folder to have it made again",
        )
    return images


def _captions(path: Path) -> dict[str, str] | None:
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StageError("data", f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise StageError("data", f"{path}: expected a table of images and their captions")
    return found


def synsets() -> tuple[str, ...]:
    """ImageNet-1k's 1000 classes in the order of their labels."""
    return tuple(package_file("timm", "data", "_info", "imagenet_synsets.txt").read_text().split())


def check_imagenet(folder: Path, expected: int) -> Listing:
    """The listing of an ImageNet split; InputError says what is missing and where to put it."""
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist: {FETCH_IMAGENET}")
    listing = scan_cached(folder)
    strange = sorted(set(listing) ^ set(synsets()))
    if strange:
        raise InputError(
            f"{folder} should have one folder for each of the 1000 synsets; missing or unknown: "
            f"{', '.join(strange[:3])} ({len(strange)} in all). {FETCH_IMAGENET}"
        )
    count = sum(len(files) for files in listing.values())
    if count != expected:
        raise InputError(f"{folder} has {count:,} images instead of {expected:,}. {FETCH_IMAGENET}")
    return listing


def open_imagenet(folder: Path, expected: int, skip: int = 0) -> ImageFolder:
    """An ImageNet split; StageError("data") where it is incomplete."""
    try:
        return ImageFolder(folder, check_imagenet(folder, expected), skip=skip)
    except (InputError, OSError) as error:
        raise StageError("data", str(error)) from error
