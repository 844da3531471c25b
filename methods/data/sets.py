"""The data sets as values: what they are called, how many images, where they lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from methods.data.imagefolder import ImageFolder

Split = Literal["train", "validation", "teacher"]

MATERIALS = (
    "brick",
    "coins",
    "fur",
    "galaxies",
    "grass",
    "gravel",
    "moon",
    "page",
    "retina",
    "tissue",
)


@dataclass(frozen=True)
class DataSet:
    """Base of the values that a stage's `data` field takes."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels 0, 1, ... (for ImageNet the synsets); of masks, those that are left
        after reduce_zero_label."""
        raise NotImplementedError

    def images(self, split: Split) -> int:
        """How many images the split has, without looking at the disk."""
        raise NotImplementedError

    def prepare(self, root: Path) -> None:
        """Build the data under `root`, or check that they are there (InputError)."""
        raise NotImplementedError


@dataclass(frozen=True)
class ImageData(DataSet):
    """Images with one label each."""

    def open(self, root: Path, split: Split) -> ImageFolder:
        """The split's images; StageError("data") where they are missing or incomplete."""
        raise NotImplementedError


@dataclass(frozen=True)
class SegmentationData(DataSet):
    """Images with a mask each, in the layout of ADEChallengeData2016 (jpg images, png masks).

    Masks are written as on disk: 0 unlabelled, k+1 class k (`reduce_zero_label`).
    """

    def root(self, root: Path) -> Path:
        """The folder that holds images/{training,validation} and annotations/..."""
        raise NotImplementedError


@dataclass(frozen=True)
class _Scenes:
    """How many scenes of Patchwork are cut, and how large."""

    train: int = 8000
    teacher: int = 8000
    validation: int = 2000
    size: int = 48
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.train, self.teacher, self.validation) < len(MATERIALS):
            raise ValueError(f"each split needs at least {len(MATERIALS)} images")
        if not 32 <= self.size <= 64:
            raise ValueError(f"size must lie between 32 and 64 pixels, not {self.size}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, not {self.seed}")

    def images(self, split: Split) -> int:
        """How many scenes the split has."""
        return {"train": self.train, "teacher": self.teacher, "validation": self.validation}[split]

    def folder(self, root: Path) -> Path:
        """Where these scenes lie under the data root; holds classification/ and ADE's layout."""
        from methods.data.patchwork import VERSION

        counts = f"{self.train}-{self.teacher}-{self.validation}"
        return root / f"patchwork-v{VERSION}-{self.size}px-{counts}-seed{self.seed}"

    def prepare(self, root: Path) -> None:
        """Cut the scenes out of scikit-image's photographs, once; two processes may ask at once."""
        from methods.data.patchwork import build

        build(self, self.folder(root))


@dataclass(frozen=True)
class Patchwork(_Scenes, ImageData):
    """Scenes of ten materials cut from photographs in the scikit-image wheel; captions too.

    A scene's label is the material of its one large patch. "teacher" holds scenes that no student
    sees; "validation" comes from another part of each photograph than the other two.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """The materials in the order of their labels."""
        return MATERIALS

    def open(self, root: Path, split: Split) -> ImageFolder:
        """The split's scenes with `.captions`; StageError("data") before `prepare`."""
        from methods.data.imagefolder import open_folder

        return open_folder(
            self.folder(root) / "classification" / split,
            expected=self.images(split),
            classes=self.classes,
        )


@dataclass(frozen=True)
class PatchworkSegmentation(_Scenes, SegmentationData):
    """The students' Patchwork scenes with their masks (the same files for the same fields)."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Background and the materials: 11 classes."""
        return ("background", *MATERIALS)

    def root(self, root: Path) -> Path:
        """The folder in ADE20K's layout."""
        return self.folder(root) / "ADEChallengeData2016"


@dataclass(frozen=True)
class ImageNet(ImageData):
    """ImageNet-1k as folders: `imagenet/{train,val}/<synset>/*.JPEG` under the data root.

    `skip` is how many unreadable training images a process may replace by the next one before
    it gives up; none may be in the validation split. There is no separate teacher split.
    """

    skip: int = 0

    def __post_init__(self) -> None:
        if self.skip < 0:
            raise ValueError(f"skip must not be negative, not {self.skip}")

    @property
    def classes(self) -> tuple[str, ...]:
        """The 1000 synsets in the order of their labels."""
        from methods.data.imagefolder import synsets

        return synsets()

    def images(self, split: Split) -> int:
        """1,281,167 to train on, 50,000 to validate."""
        return 50_000 if split == "validation" else 1_281_167

    def folder(self, root: Path, split: Split) -> Path:
        """Where the split lies under the data root."""
        return root / "imagenet" / ("val" if split == "validation" else "train")

    def prepare(self, root: Path) -> None:
        """Check both folders and their counts; InputError says what to fetch and where."""
        from methods.data.imagefolder import check_imagenet

        splits: tuple[Split, ...] = ("train", "validation")
        for split in splits:
            check_imagenet(self.folder(root, split), self.images(split))

    def open(self, root: Path, split: Split) -> ImageFolder:
        """The split's images; StageError("data") where some are missing."""
        from methods.data.imagefolder import open_imagenet

        skip = 0 if split == "validation" else self.skip
        return open_imagenet(self.folder(root, split), self.images(split), skip)


@dataclass(frozen=True)
class Ade20k(SegmentationData):
    """ADE20K of the 2016 scene parsing challenge: 150 classes, 20,210 and 2,000 images."""

    @property
    def classes(self) -> tuple[str, ...]:
        """mmsegmentation's names of the 150 classes."""
        from methods.data.ade20k import CLASSES

        return CLASSES

    def images(self, split: Split) -> int:
        """20,210 to train on, 2,000 to validate."""
        return 2_000 if split == "validation" else 20_210

    def root(self, root: Path) -> Path:
        """The unpacked archive under the data root."""
        return root / "ADEChallengeData2016"

    def prepare(self, root: Path) -> None:
        """Check counts, pairs and labels; InputError says what to fetch and where to put it."""
        from methods.data.ade20k import check

        check(self.root(root), {"training": 20_210, "validation": 2_000})
