"""What loading costs: images that one core decodes and augments in a second, beside torchvision."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

import methods
from harness.bench.interval import ratio_interval
from harness.bench.measure import Clock
from harness.bench.table import keep, listed
from harness.plan import make_plan
from harness.provenance import versions
from harness.report.markup import markdown_table
from harness.study import Scale, Study, load_scale
from methods.data.augment import ToSample, with_posterize
from methods.data.imagefolder import ImageFolder, scan
from methods.data.stream import Stream
from methods.data.wheels import package_file
from methods.engine.work import Layout
from methods.errors import InputError
from methods.parts.augment import FineTuneAugmentation, mean_std
from methods.values import did_you_mean, to_plain

Load = Callable[[Sequence[Path]], Any]
"""A batch of files, decoded and augmented."""

EVALUATIONS: tuple[Literal["linear", "finetune"], ...] = ("linear", "finetune")
DEFAULT = ("milan", "beitv2", "cae", *EVALUATIONS)
"""One view, one with jitter, two views, and the evaluations'."""

PICTURE = (500, 375)
QUALITY = 98
"""An image of ImageNet has about these pixels, and 110 kB."""

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
COUNT = 64
"""Files that are made, all of which are loaded once in each timed step."""


@dataclass(frozen=True)
class Pipeline:
    """What a stage does with a picture: its augmentation's value, and the masks it draws."""

    name: str
    augmentation: Any
    masking: Any = None
    grid: tuple[int, int] | None = None


def run(options: argparse.Namespace) -> int:
    """Measures every pipeline and prints the rows, or keeps them in `options.out`."""
    from harness.bench.rows import Setting, machine

    names = listed(",".join(filter(None, (options.methods, options.evals)))) or DEFAULT
    scale = load_scale(options.scale)
    about = machine(Setting("cpu", 1, 1, threads=1, busy=options.busy))
    rows = []
    for pipeline in pipelines(names, scale):
        row = loading_row(pipeline, options.steps, options.busy, options.peer)
        rows.append({**row, "scale": scale.name, "machine": about})
        if options.out is not None:
            peer = f"-{options.peer}" if options.peer else ""
            name = f"{scale.name}-loading{'-busy' * options.busy}{peer}.json"
            keep(options.out / name, rows[-1])
    print(json.dumps(rows, indent=1) if options.format == "json" else render(rows))
    return 0


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """Images of one core in a second, ours and the reference's, as Markdown."""
    columns = ("pipeline", "images/s", "reference", "its images/s", "ratio", "95 % interval")
    lines = [
        [
            str(row["name"]),
            f"{row['images_per_core_second']:.0f}",
            f"{peer['name']} {peer['version']}",
            f"{peer['images_per_core_second']:.0f}",
            f"{peer['ratio']:.2f}",
            "{:.2f} to {:.2f}".format(*peer["interval"]),
        ]
        for row in rows
        for peer in (row["peer"],)
    ]
    note = "one core, JPEGs of {pictures}; medians of {steps} steps, {clock} time; "
    about = rows[0]["machine"]
    where = f"{about['processor']}, {about['date']}"
    return f"{markdown_table(columns, lines)}\n\n{note.format(**rows[0])}{where}"


def pipelines(names: Sequence[str], scale: Scale) -> Iterator[Pipeline]:
    """Those of methods and of evaluations, at this scale; InputError for other names."""
    known = [*methods.names(), *EVALUATIONS]
    for name in names:
        if name not in known:
            raise InputError(f"--loading: nothing is called {name!r}{did_you_mean(name, known)}")
    for name in names:
        method = "mae" if name in EVALUATIONS else name
        study = Study("bench", methods=(method,), scale=scale.name, evals=EVALUATIONS)
        stages = make_plan(study, scale).rows[0].stages
        if name in EVALUATIONS:
            task: Any = stages[name].task
            yield Pipeline(name, task.augmentation)
        else:
            value: Any = stages["pretrain"].task
            made = value.method
            yield Pipeline(name, made.augmentation, made.masking, made.encoder.grid)


def photographs(folder: Path) -> Path:
    """COUNT JPEGs of PICTURE's size in folder/photographs, parts of scikit-image's pictures."""
    place = folder / "photographs"
    place.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(COUNT):
        file = package_file("skimage", "data", PHOTOGRAPHS[number % len(PHOTOGRAPHS)])
        with Image.open(file) as image:
            picture = image.convert("RGB")
        width, height = picture.size
        wide = int(min(width, height * 4 / 3) * generator.uniform(0.7, 1.0))
        high = wide * 3 // 4
        left, top = generator.integers(width - wide + 1), generator.integers(height - high + 1)
        box = (int(left), int(top), int(left) + wide, int(top) + high)
        part = picture.resize(PICTURE, Image.Resampling.BICUBIC, box)
        part.save(place / f"{number:03}.JPEG", quality=QUALITY)
    return place


def reference(value: Any) -> Callable[[Image.Image], Any]:
    """The official recipe of the same augmentation: torchvision's transforms, timm's to fine-tune.

    It ends with normalised float32 tensors, which ours makes on the device.
    """
    from torchvision import transforms
    from torchvision.transforms import InterpolationMode

    mean, std = mean_std(value.statistics)
    if isinstance(value, FineTuneAugmentation):
        return _fine_tuning(value, mean, std)
    kind = InterpolationMode(value.interpolation)
    end = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    jitter = getattr(value, "jitter", None)
    begin = [transforms.ColorJitter(*jitter)] if jitter else []
    begin.append(transforms.RandomHorizontalFlip(value.flip))
    second = getattr(value, "second", None)
    if second is None:
        crop = transforms.RandomResizedCrop(value.size, value.scale, value.ratio, kind)
        return transforms.Compose([*begin, crop, *end])
    return _two_views(value, transforms.Compose(begin), transforms.Compose(end))


def reference_name(value: Any) -> str:
    """The package that `reference` takes for this augmentation."""
    return "timm" if isinstance(value, FineTuneAugmentation) else "torchvision"


def _two_views(value: Any, begin: Any, end: Any) -> Callable[[Image.Image], Any]:
    """BEiT's RandomResizedCropAndInterpolationWithTwoPic: one box, resized twice."""
    from torchvision.transforms import InterpolationMode, RandomResizedCrop
    from torchvision.transforms import functional as F

    views = [(value.size, value.interpolation), (value.second.size, value.second.interpolation)]

    def made(picture: Image.Image) -> Any:
        picture = begin(picture)
        box = RandomResizedCrop.get_params(picture, list(value.scale), list(value.ratio))
        return [
            end(F.resized_crop(picture, *box, [side, side], InterpolationMode(kind)))
            for side, kind in views
        ]

    return made


def _fine_tuning(value: FineTuneAugmentation, mean: Any, std: Any) -> Callable[[Image.Image], Any]:
    from timm.data import create_transform

    found: Any = create_transform(
        value.size,
        is_training=True,
        scale=value.scale,
        ratio=value.ratio,
        hflip=value.flip,
        auto_augment=value.rand_augment,
        interpolation=value.interpolation,
        mean=mean,
        std=std,
        re_prob=value.erasing,
        re_mode="pixel",
    )
    for step in found.transforms:
        if hasattr(step, "ops"):
            with_posterize(step)
    return found


def reference_batch(files: Sequence[Path], transform: Callable[[Image.Image], Any]) -> Any:
    """The files decoded as torchvision does, transformed and collated."""
    from torch.utils.data import default_collate
    from torchvision.datasets.folder import pil_loader

    return default_collate([transform(pil_loader(str(file))) for file in files])


def beside(pipeline: Pipeline, peer: str | None) -> tuple[str, str, Load]:
    """Name, version and loader that ours is measured beside: the official recipe, or `peer`'s."""
    if peer is None:
        name, transform = reference_name(pipeline.augmentation), reference(pipeline.augmentation)
        return name, versions()[name], lambda files: reference_batch(files, transform)
    if peer != "mmpretrain":
        raise InputError(f"--peer {peer}: of --loading there is mmpretrain")
    from harness.bench.peer_mmpretrain_loading import load

    return peer, *load(pipeline.name)


def loading_row(
    pipeline: Pipeline, steps: int, busy: bool, peer: str | None = None
) -> dict[str, Any]:
    """Ours and the other in turn, on one core; a step loads every picture once."""
    clock, (name, version, load) = Clock(torch.device("cpu"), busy), beside(pipeline, peer)
    times: tuple[list[float], list[float]] = ([], [])
    with TemporaryDirectory() as folder:
        files = sorted(photographs(Path(folder)).iterdir())
        stream = iter(_stream(Path(folder), pipeline))
        for _ in range(steps + 1):
            clock.mark(None)
            next(stream)
            times[0].append(clock.lap())
            load(files)
            times[1].append(clock.lap())
        size = statistics.mean(file.stat().st_size for file in files)
    ours, theirs = (each[1:] for each in times)  # the first warms up
    return {
        "name": pipeline.name,
        "augmentation": to_plain(pipeline.augmentation),
        "pictures": f"{PICTURE[0]} x {PICTURE[1]}, {size / 1e3:.0f} kB",
        "steps": steps,
        "clock": "processor" if busy else "wall",
        "images_per_core_second": COUNT / statistics.median(ours),
        "peer": {
            "name": name,
            "version": version,
            "images_per_core_second": COUNT / statistics.median(theirs),
            "ratio": statistics.median(theirs) / statistics.median(ours),
            "interval": ratio_interval(theirs, ours),
        },
    }


def _stream(folder: Path, pipeline: Pipeline) -> Stream:
    """The stream of a stage over all pictures, loaded by this process."""
    views = ToSample(pipeline.augmentation.build(), pipeline.masking, pipeline.grid)
    return Stream(ImageFolder(folder, scan(folder)), views, COUNT, 0, Layout())
