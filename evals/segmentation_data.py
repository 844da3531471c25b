"""mmsegmentation's data set and transforms, drawing from the generator of each sample."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional as F

from evals.segmentation import Segmentation
from evals.segmentation_mmseg import BaseSegDataset, cv2
from methods.data.augment import global_rng
from methods.errors import StageError

IGNORED = 255
FOLDERS = {"train": "training", "validation": "validation"}
Split = Literal["train", "validation"]


class MaskCheck:
    """A transform that raises StageError "data" for a mask that does not fit image or classes.

    Without it a mask of another size is cropped as if it fitted, and a label out of range ends the
    training in an error of the device that names no file.
    """

    def __init__(self, classes: int) -> None:
        self._classes = classes

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        mask, size, path = results["gt_seg_map"], results["ori_shape"], results["seg_map_path"]
        if mask.shape != tuple(size):
            raise StageError("data", f"{path}: a mask of {mask.shape} for an image of {size}")
        wrong = mask[(mask >= self._classes) & (mask != IGNORED)]
        if wrong.size:
            # On disk the labels are one more.
            raise StageError("data", f"{path}: label {wrong[0] + 1} of {self._classes} classes")
        return results


def training_pipeline(task: Segmentation) -> list[Any]:
    """mmsegmentation's transforms of ADE20K in the order of BEiT's and MAE's configs."""
    resize = {"scale": task.scale, "ratio_range": task.ratio, "keep_ratio": True}
    crop = {"crop_size": (task.crop, task.crop), "cat_max_ratio": task.cat_max}
    distortion = [{"type": "mmseg.PhotoMetricDistortion"}] if task.distortion else []
    return [
        {"type": "LoadImageFromFile"},
        {"type": "mmseg.LoadAnnotations"},
        MaskCheck(len(task.data.classes)),
        {"type": "RandomResize", "resize_type": "mmseg.Resize", **resize},
        {"type": "mmseg.RandomCrop", **crop},
        {"type": "mmseg.RandomFlip", "prob": task.flip},
        *distortion,
        {"type": "mmseg.PackSegInputs"},
    ]


def validation_pipeline(task: Segmentation, scale: tuple[int, int] | None = None) -> list[Any]:
    """Without chance; the mask keeps its own size, to which the prediction is resized."""
    return [
        {"type": "LoadImageFromFile"},
        {"type": "mmseg.Resize", "scale": scale or task.scale, "keep_ratio": True},
        {"type": "mmseg.LoadAnnotations"},
        MaskCheck(len(task.data.classes)),
        {"type": "mmseg.PackSegInputs"},
    ]


class Pictures:
    """Where the images and masks of a split lie; a source for `methods.data.stream`."""

    def __init__(self, dataset: BaseSegDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        found: dict[str, Any] = self.dataset.get_data_info(index)
        return found


def open_pictures(task: Segmentation, root: Path, split: Split) -> Pictures:
    """A split in ADE20K's layout with the task's transforms; StageError "data" if incomplete."""
    folder, name = task.data.root(root), FOLDERS[split]
    for kind in ("images", "annotations"):
        if not (folder / kind / name).is_dir():
            raise StageError("data", f"{folder / kind / name}: no such folder")
    dataset = BaseSegDataset(
        data_root=str(folder),
        data_prefix={
            "img_path": f"images/{name}",
            "seg_map_path": f"annotations/{name}",
            "img_path2": "",
        },
        metainfo={"classes": task.data.classes},
        img_suffix=".jpg",
        seg_map_suffix=".png",
        reduce_zero_label=True,
        pipeline=training_pipeline(task) if split == "train" else validation_pipeline(task),
    )
    wanted = task.data.images(split)
    if len(dataset) != wanted:
        raise StageError("data", f"{folder / 'images' / name}: {len(dataset)} of {wanted} images")
    return Pictures(dataset)


def packed_by(pipeline: Callable[..., Any], item: dict[str, Any]) -> dict[str, Any]:
    """The transforms' result: "inputs" uint8 (3,h,w) BGR and "data_samples"."""
    try:
        packed: dict[str, Any] = pipeline(item)
    except (AssertionError, AttributeError, OSError, TypeError, ValueError, cv2.error) as error:
        # OpenCV returns None for a broken picture, on which the next line of mmcv trips.
        told = f"{item['img_path']} or its mask {item['seg_map_path']}: {error}"
        raise StageError("data", told) from error
    return packed


class TrainingSample:
    """Picture -> "image" uint8 (3,c,c) BGR and "label" uint8 (1,c,c), c the crop; "size" (2,).

    What lies beyond "size" (height, width) is padding, labelled 255, for pictures smaller than the
    crop. mmcv draws from the global generators, so these are the sample's own while it does.
    """

    def __init__(self, pictures: Pictures, crop: int) -> None:
        self._pictures, self._crop = pictures, crop

    def __call__(self, item: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        with global_rng(generator):
            packed = packed_by(self._pictures.dataset.pipeline, item)
        image, label = packed["inputs"], packed["data_samples"].gt_sem_seg.data.to(torch.uint8)
        height, width = image.shape[1:]
        padding = (0, self._crop - width, 0, self._crop - height)
        return {
            "image": F.pad(image, padding),
            "label": F.pad(label, padding, value=IGNORED),
            "size": torch.tensor([height, width]),
        }


class ValidationSample:
    """Picture -> "packed", mmsegmentation's own sample: pictures differ in size."""

    def __init__(self, pictures: Pictures) -> None:
        self._pictures = pictures

    def __call__(self, item: dict[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        return {"packed": packed_by(self._pictures.dataset.pipeline, item)}
