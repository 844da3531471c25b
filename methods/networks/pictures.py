"""What pretraining came to, on four validation images: mask, attention, and every prediction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from methods.data.augment import ToSample
from methods.data.mixing import to_float
from methods.data.stream import Samples, collate
from methods.engine.device import to_device
from methods.engine.pictures import Strip, heat, indices, photo
from methods.networks.targets import patchify
from methods.parts.augment import Augmentation, EvaluationTransform, SecondView, Views, mean_std
from methods.parts.masking import Masking
from methods.parts.model import Method, Objective
from methods.parts.target import Codes, Pixels, Target

if TYPE_CHECKING:
    from methods.engine.work import Work
    from methods.networks.pretrainer import MaskedModelling
    from methods.pretrain import Pretraining

SEED = 0  # of the masks' generator, the same for all stages


def strips(task: Pretraining, trained: MaskedModelling, work: Work) -> Iterator[Strip]:
    """Images, attention of a teacher, masks, then a strip per objective; eval mode from now on."""
    method = task.method
    batch = _batch(task, work, next(trained.module.parameters()).device)
    trained.module.eval()
    (micro,) = trained.prepare(0, [batch])
    images = to_float(batch["image"])
    seen = ~micro["mask"].unflatten(1, method.encoder.grid)
    yield Strip("1-images", "validation images", [photo(image) for image in images])
    yield from _attention(method, trained.frozen, to_float(batch.get("second", batch["image"])))
    text = f"mask, {method.masking.describe()}: what the encoder sees"
    yield Strip("3-mask", text, [photo(*each) for each in zip(images, seen, strict=True)])
    predictions = trained.pretrainer.predict(micro)
    for number, (objective, target) in enumerate(
        zip(method.objectives, micro["targets"], strict=True), start=4
    ):
        prediction = predictions[objective.prediction].float()
        view = _View(method, objective, micro["image"], micro["mask"])
        yield from view.strips(str(number), prediction, target)


def _batch(task: Pretraining, work: Work, device: torch.device) -> dict[str, Any]:
    """What the loader would give for the images that are drawn, but without chance in the views."""
    method, source = task.method, task.data.open(work.data, "validation")
    transform = ToSample(_views(method.augmentation), method.masking, method.encoder.grid)
    samples = Samples(source, transform, SEED)
    batch = collate([samples[0, index] for index in indices(len(source))])
    assert isinstance(batch, dict)
    return to_device(batch, device)


def _views(value: Augmentation) -> Views:
    """The largest square in the middle of a picture, in the sizes of the augmentation's views."""
    views: dict[str, Augmentation | SecondView] = {"image": value}
    if value.second is not None:
        views["second"] = value.second
    build = {
        name: EvaluationTransform(each.size, each.size, each.interpolation).build()
        for name, each in views.items()
    }

    def cut(image: Any, generator: np.random.Generator) -> dict[str, Tensor]:
        return {name: view(image, generator)["image"] for name, view in build.items()}

    return cut


def _attention(method: Method, frozen: Mapping[str, Any], images: Tensor) -> Iterator[Strip]:
    """Where the class token of a teacher looks, for the first that has one; as the method uses it.

    images: (B, 3, H, W) in [0, 1], as the frozen networks get them.
    """
    parts: list[Masking | Target] = [method.masking, *(each.target for each in method.objectives)]
    for part in parts:
        for role in part.needs:
            teacher = frozen[role]
            if hasattr(teacher, "widths"):  # a tokenizer has none
                attention = teacher(images, getattr(part, "statistics", "clip")).attention
                maps = attention.unflatten(1, teacher.grid)
                side = images.shape[-1] // maps.shape[-1]
                tiles = [heat(each, side, float(each.max())) for each in maps]
                text = f"class attention of {role.upper()}, none (dark) to each image's most"
                yield Strip("2-attention", f"{text} (bright)", tiles)
                return


class _View:
    """How one objective's prediction is shown. image (B, 3, H, W) normalised, mask (B, N)."""

    def __init__(self, method: Method, objective: Objective, image: Tensor, mask: Tensor) -> None:
        self.method, self.objective, self.image, self.mask = method, objective, image, mask
        self.side = image.shape[-1] // method.encoder.grid[1]

    def strips(self, place: str, prediction: Tensor, target: Tensor) -> Iterator[Strip]:
        """A reconstruction for pixels, a probability for codes, else a cosine; none for images."""
        about = self.objective.target.describe()
        if self.objective.prediction not in ("tokens", "image"):
            about += f" ({self.objective.prediction})"
        if isinstance(self.objective.target, Pixels):
            text = f"reconstruction from {about}; what is visible is the image's own"
            yield Strip(f"{place}-reconstruction", text, self._pixels(prediction))
        elif isinstance(self.objective.target, Codes):
            chance = prediction.softmax(-1).gather(-1, target[..., None]).squeeze(-1)
            text = f"probability of the right one of the {about}"
            yield self._map(f"{place}-probability", text, chance, float(chance.max()))
        elif self.objective.where != "image" and prediction.shape == target.shape:
            cosine = F.cosine_similarity(prediction, target.float(), dim=-1)
            if cosine.ndim > (1 if self.objective.where in ("hidden", "visible") else 2):
                cosine = cosine.mean(-1)  # of the teacher's tokens in a Swin's cell
            text = f"cosine similarity of prediction and target, {about}"
            yield self._map(f"{place}-similarity", text, cosine, 1.0)

    def _map(self, name: str, text: str, rows: Tensor, high: float) -> Strip:
        values = self._patches(rows)
        mean = float(values.nanmean())
        text = f"{text}: 0 (dark) to {high:.2g} (bright), mean {mean:.2g}"
        grids = values.unflatten(1, self.method.encoder.grid)
        return Strip(name, text, [heat(grid, self.side, high) for grid in grids])

    def _patches(self, rows: Tensor) -> Tensor:
        """Rows that `methods.networks.decoders.select` gave, back at their patches.

        (B, N, ...), NaN where there is none.
        """
        where = self.objective.where
        if where in ("all", "patches"):
            return rows[:, rows.shape[1] - self.mask.shape[1] :]
        full = rows.new_full((*self.mask.shape, *rows.shape[1:]), torch.nan)
        full[self.mask if where == "hidden" else ~self.mask] = rows
        return full

    def _pixels(self, rows: Tensor) -> list[Any]:
        """The images (B) with the predicted pixels in place of the hidden ones."""
        assert isinstance(self.objective.target, Pixels)
        own = patchify(self.image, self.side)
        patches = self._patches(rows)
        if self.objective.target.normalise_patches:
            variance, mean = torch.var_mean(own, dim=-1, keepdim=True)
            patches = patches * (variance + 1e-6).sqrt() + mean
        patches = torch.where(self.mask[..., None], patches, own).nan_to_num()
        squares = patches.unflatten(2, (self.side, self.side, 3))
        squares = squares.unflatten(1, self.method.encoder.grid)  # (B, rows, columns, P, P, 3)
        images = squares.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        average, deviation = (
            images.new_tensor(values).view(3, 1, 1)
            for values in mean_std(self.method.augmentation.statistics)
        )
        return [photo(image * deviation + average) for image in images]
