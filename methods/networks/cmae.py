"""CMAE's feature decoder, momentum branch, contrast and views."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torchvision.transforms.functional import adjust_hue

from methods.data.augment import crop_box, jittered, resized, to_tensor
from methods.data.mixing import normalise
from methods.engine import distributed
from methods.networks.decoders import TransformerDecoder
from methods.networks.encoders import Encoded, Student
from methods.networks.targets import Inputs, TargetNetwork
from methods.parts.augment import Augmentation
from methods.parts.decoder import Output

if TYPE_CHECKING:
    from methods.cmae import MomentumBranch, PixelAndFeature


class GlobalBatchNorm(nn.Module):
    """Batch norm by the statistics of the rows on all ranks; it keeps none for later."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, rows: Tensor) -> Tensor:
        """(B, C) standardised by the mean and biased variance of every rank's rows."""
        with torch.autocast(rows.device.type, enabled=False):
            everyone = distributed.gather(rows.float())
            variance, mean = torch.var_mean(everyone, dim=0, correction=0)
            return (rows.float() - mean) * (variance + 1e-6).rsqrt() * self.weight + self.bias


def projector(width: int, hidden: int, output: int) -> nn.Sequential:
    """Linear, batch norm, ReLU and a linear layer without bias; PyTorch's initialisation."""
    return nn.Sequential(
        nn.Linear(width, hidden),
        GlobalBatchNorm(hidden),
        nn.ReLU(),
        nn.Linear(hidden, output, bias=False),
    )


class PixelAndFeatureDecoder(nn.Module):
    """See `methods.cmae.PixelAndFeature`."""

    early_layer: int | None = None

    def __init__(
        self, value: PixelAndFeature, student: Student, outputs: Mapping[str, Output]
    ) -> None:
        from methods.parts.decoder import Transformer

        super().__init__()
        pixels = Transformer(value.width, value.depth, value.heads)
        features = Transformer(value.width, value.feature_depth, value.heads)
        output = outputs["image"].width
        self.pixel = TransformerDecoder(pixels, student, outputs["tokens"])
        self.feature = TransformerDecoder(features, student, Output(student.width, "patches"))
        self.projector = projector(student.width, value.projector, output)
        self.predictor = projector(output, value.projector, output)

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        mean = self.feature(encoded)["tokens"].mean(dim=1)
        image = self.predictor(self.projector(mean))
        return {**self.pixel(encoded), "image": image}


class MomentumTarget(TargetNetwork):
    """See `methods.cmae.MomentumBranch`; (B, C) for the second view, without the final norm."""

    encoder: Student
    projector: nn.Sequential

    def __init__(self, value: MomentumBranch) -> None:
        super().__init__()
        self.width, self.momentum = value.width, value.momentum

    def start(self, student: Any) -> None:
        self.encoder = copy.deepcopy(student.encoder).requires_grad_(False)
        self.projector = copy.deepcopy(student.decoder.projector).requires_grad_(False)

    def one(self, inputs: Inputs, student: Any) -> Tensor:
        assert inputs.mask is not None
        image = normalise(inputs.plain, inputs.statistics)
        encoded = self.encoder(image, torch.zeros_like(inputs.mask))
        target: Tensor = self.projector(encoded.tokens[:, 1:].mean(dim=1))
        return target

    @torch.no_grad()
    def after_step(self, student: Any) -> None:
        pairs = ((self.encoder, student.encoder), (self.projector, student.decoder.projector))
        for mine, theirs in pairs:
            for average, parameter in zip(mine.parameters(), theirs.parameters(), strict=True):
                average.lerp_(parameter, 1 - self.momentum)


def info_nce(prediction: Tensor, target: Tensor, temperature: float) -> Tensor:
    """2 t CE of the cosines / t between predictions (B, C) and the targets of all ranks' images."""
    targets = distributed.gather(F.normalize(target.float(), dim=-1))
    logits = F.normalize(prediction.float(), dim=-1) @ targets.T / temperature
    own = torch.arange(len(target), device=target.device) + distributed.rank() * len(target)
    return 2 * temperature * F.cross_entropy(logits, own)


class ShiftedViews:
    """See `methods.cmae.ShiftedPair`."""

    def __init__(self, value: Augmentation) -> None:
        self.value = value
        self.large = round(value.size * 8 / 7)

    def __call__(self, image: Image.Image, generator: np.random.Generator) -> dict[str, Tensor]:
        """ "image" and "second", uint8 (3, size, size)."""
        value, size = self.value, self.value.size
        crop = image.crop(crop_box(*image.size, value.scale, value.ratio, generator))
        crop = resized(crop, self.large, value.interpolation)
        if generator.random() < value.flip:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        left, top = (int(each) for each in generator.integers(max(1, self.large - size), size=2))
        second = crop.crop((left, top, left + size, top + size))
        return {
            "image": to_tensor(crop.crop((0, 0, size, size))),
            "second": to_tensor(recoloured(second, generator)),
        }


def recoloured(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Colour jitter .4, .4, .4, .1 of 0.8, grey of 0.2 and a blur of 0.5 of the pictures."""
    if generator.random() < 0.8:
        image = jittered(image, (0.4, 0.4, 0.4), generator)
        image = adjust_hue(image, float(generator.uniform(-0.1, 0.1)))
    if generator.random() < 0.2:
        image = image.convert("L").convert("RGB")
    if generator.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(float(generator.uniform(0.1, 2.0))))
    return image
