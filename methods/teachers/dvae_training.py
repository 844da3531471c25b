"""Training a small discrete VAE: relaxed codes, logit-Laplace likelihood, divergence."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.data.augment import ToSample
from methods.data.mixing import to_float
from methods.data.stream import Stream, evaluation_batches
from methods.engine import distributed
from methods.engine.loop import fit
from methods.engine.optim import parameter_groups
from methods.engine.pictures import draw
from methods.parts.augment import EvaluationTransform
from methods.teachers.dalle import STRIDE
from methods.teachers.dalle_network import MARGIN, DalleDecoder, DalleEncoder, squeeze
from methods.teachers.tokenizer import save, usage_strip
from methods.teachers.vqkd_training import check_usage, perplexity

if TYPE_CHECKING:
    from methods.data.imagefolder import ImageFolder
    from methods.engine.work import Layout, Work
    from methods.teachers.dalle import DvaeTraining

SMALLEST_LOG_SCALE = -3.0  # else a flat region makes the likelihood unbounded


def train(task: DvaeTraining, work: Work) -> dict[str, float]:
    """Trains, measures on the validation split, refuses a collapsed codebook, writes the folder."""
    source = task.data.open(work.data, "train")
    torch.manual_seed(task.seed)
    trainable = DvaeTrainable(task, len(source))
    transform, batch = ToSample(task.augmentation.build()), task.optimisation.batch
    stream = partial(Stream, source, transform, batch, task.seed, work.layout, unit=1)
    fit(trainable, task.optimisation, stream, work, len(source), task.seed)
    network = trainable.network.eval()
    metrics, counts = measure(network, task.data.open(work.data, "validation"), work.layout)
    work.log(task.optimisation.steps(len(source)), **metrics)
    check_usage(metrics["usage"], task.codes, task.minimum_usage)
    if work.layout.rank == 0:
        save(work.folder, "dalle", network.encoder, task.network, "trained here")
    draw(work, lambda: [usage_strip(counts)])
    return metrics


class Dvae(nn.Module):
    """Encoder and decoder with the evidence lower bound as a loss, per pixel and channel."""

    def __init__(self, network: dict[str, Any], divergence: float) -> None:
        super().__init__()
        self.encoder = DalleEncoder(**network)
        sizes = {name: network[name] for name in ("hidden", "blocks", "codes")}
        self.decoder = DalleDecoder(**sizes)
        # The bound counts codes; the mean over pixels has 8 x 8 x 3 of them to one code.
        self.divergence = divergence / (3 * STRIDE**2)

    def forward(self, micro: dict[str, Any]) -> dict[str, Tensor]:
        """image (B, 3, H, W) in [0, 1]; noise (B, codes, h, w), Gumbel; temperature, a number."""
        logits = self.encoder(micro["image"]).float()
        relaxed = ((logits + micro["noise"]) / micro["temperature"]).softmax(1)
        centre, scale = self.decoder(relaxed)
        likelihood = laplace_loss(micro["image"], centre, scale)
        divergence = uniform_divergence(logits)
        loss = likelihood + self.divergence * divergence
        return {"loss": loss, "likelihood": likelihood, "divergence": divergence}


def laplace_loss(images: Tensor, centre: Tensor, scale: Tensor) -> Tensor:
    """Mean negative log likelihood of squeezed images under logit-Laplace(centre, exp scale)."""
    pixels, scale = squeeze(images.float()), scale.float().clamp(min=SMALLEST_LOG_SCALE)
    distance = (torch.logit(pixels) - centre.float()).abs() / scale.exp()
    return (distance + scale + math.log(2) + (pixels * (1 - pixels)).log()).mean()


def uniform_divergence(logits: Tensor) -> Tensor:
    """Mean over codes' places of KL(softmax of (B, K, h, w) over K || uniform), in nats."""
    log = logits.log_softmax(1)
    return (log.exp() * (log + math.log(logits.shape[1]))).sum(1).mean()


def annealed(temperature: tuple[float, float], step: int, steps: int) -> float:
    """Along half a cosine from the first to the second over the training."""
    high, low = temperature
    return low + (high - low) * (1 + math.cos(math.pi * step / max(1, steps - 1))) / 2


def gumbel(rows: int, shape: tuple[int, ...], seed: int, step: int) -> Tensor:
    """Gumbel noise float32 (rows, *shape), a function of seed and step."""
    generator = np.random.default_rng([seed, step, 0x64766165])
    return torch.from_numpy(generator.gumbel(size=(rows, *shape)).astype(np.float32))


class DvaeTrainable:
    """What `fit` trains."""

    def __init__(self, task: DvaeTraining, images: int) -> None:
        self.task = task
        self.network = Dvae(task.network, task.divergence)
        self.module: nn.Module = self.network
        self.steps = task.optimisation.steps(images)

    def groups(self) -> list[dict[str, Any]]:
        """Weight decay spares biases."""
        return parameter_groups(self.module, self.task.optimisation)

    def prepare(self, step: int, micros: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Adds temperature and noise; the noise of an image does not depend on how a batch is cut.

        It is drawn on the CPU for the global batch, of which this rank takes its rows.
        """
        sizes = [len(micro["image"]) for micro in micros]
        shape = (self.task.codes, *self.network.encoder.grid)
        noise = gumbel(sum(sizes) * distributed.world(), shape, self.task.seed, step)
        own = noise[distributed.rank() * sum(sizes) :][: sum(sizes)].split(sizes)
        temperature = annealed(self.task.temperature, step, self.steps)
        return [
            {
                "image": to_float(micro["image"]),
                "noise": part.to(micro["image"].device),
                "temperature": temperature,
            }
            for micro, part in zip(micros, own, strict=True)
        ]

    def after_step(self, step: int) -> dict[str, float]:
        """The temperature of the update, to be logged."""
        return {"temperature": annealed(self.task.temperature, step, self.steps)}


@torch.no_grad()
def measure(network: Dvae, source: ImageFolder, layout: Layout) -> tuple[dict[str, float], Tensor]:
    """usage, perplexity and mean absolute pixel error with hard codes on a split.

    And how often each code occurs, (codes,).
    """
    encoder, device = network.encoder, next(network.parameters()).device
    counts = torch.zeros(encoder.size, dtype=torch.float64, device=device)
    total = torch.zeros(2, dtype=torch.float64, device=device)
    views = EvaluationTransform(size=encoder.image).build()
    for batch in evaluation_batches(source, ToSample(views), 128, layout):
        images = to_float(batch["image"].to(device))
        codes = encoder(images).argmax(1)
        hard = F.one_hot(codes, encoder.size).permute(0, 3, 1, 2).float()
        pixels = (network.decoder(hard)[0].sigmoid() - MARGIN) / (1 - 2 * MARGIN)
        error = (pixels.clamp(0, 1) - images).abs().mean()
        counts += torch.bincount(codes.flatten(), minlength=encoder.size)
        total += total.new_tensor([float(error) * len(images), len(images)])
    distributed.all_reduce(counts)
    errors, seen = distributed.all_reduce(total).tolist()
    usage = float((counts > 0).double().mean())
    metrics = {"usage": usage, "perplexity": perplexity(counts), "reconstruction": errors / seen}
    return metrics, counts
