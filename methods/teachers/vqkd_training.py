"""Training VQ-KD: k-means start, straight-through codes, a codebook moved by its average."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

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
from methods.errors import StageError
from methods.parts.augment import EvaluationTransform
from methods.teachers.folder import load_teacher
from methods.teachers.tokenizer import save, usage_strip
from methods.teachers.vqkd_network import VqkdNetwork

if TYPE_CHECKING:
    from methods.data.imagefolder import ImageFolder
    from methods.engine.work import Layout, Work
    from methods.teachers.clip_network import FrozenClip
    from methods.teachers.encoder_network import FrozenEncoder
    from methods.teachers.vqkd import VqkdTraining


def train(task: VqkdTraining, work: Work) -> dict[str, float]:
    """Trains, measures on the validation split, refuses a collapsed codebook, writes the folder."""
    side = task.image // task.patch
    teacher = load_teacher(work.needs[task.teacher], grid=(side, side))
    source = task.data.open(work.data, "train")
    torch.manual_seed(task.seed)
    trainable = VqkdTrainable(task, teacher, len(source))
    transform, batch = ToSample(task.augmentation.build()), task.optimisation.batch
    stream = partial(Stream, source, transform, batch, task.seed, work.layout, unit=1)
    fit(trainable, task.optimisation, stream, work, len(source), task.seed)
    network = trainable.network.eval()
    validation = task.data.open(work.data, "validation")
    metrics, counts = measure(network, trainable.teacher, validation, work.layout)
    work.log(task.optimisation.steps(len(source)), **metrics)
    check_usage(metrics["usage"], task.codes, task.minimum_usage)
    if work.layout.rank == 0:
        arguments = task.network(teacher.widths["projected"])
        save(work.folder, "vqkd", network, arguments, "trained here")
    draw(work, lambda: [usage_strip(counts)])
    return metrics


def check_usage(usage: float, codes: int, minimum: float) -> None:
    """StageError("codebook") below `minimum`."""
    if usage < minimum:
        raise StageError(
            "codebook",
            f"the validation split uses {usage:.1%} of the {codes} codes, less than minimum_usage "
            f"= {minimum:.1%}: the codebook has collapsed; use fewer codes, a smaller "
            "code_dimension or more training",
        )


class VqkdLoss(nn.Module):
    """The network with its loss: (1 - cosine to the teacher's tokens) + commitment."""

    def __init__(self, network: VqkdNetwork, commitment: float) -> None:
        super().__init__()
        self.network, self.commitment = network, commitment

    def forward(self, micro: dict[str, Tensor]) -> dict[str, Tensor]:
        """image (B, 3, H, W) in [0, 1]; target (B, N, P), the teacher's projected patch tokens."""
        tokens = self.network.encode(micro["image"])
        with torch.autocast(tokens.device.type, enabled=False):
            quantised, _, commitment = self.network.quantize(tokens)
        predicted = self.network.decode(quantised)
        reconstruction = reconstruction_loss(predicted, micro["target"])
        loss = reconstruction + self.commitment * commitment
        return {"loss": loss, "reconstruction": reconstruction, "commitment": commitment}


def reconstruction_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean over tokens of 1 - cosine of (B, N, P) and (B, N, P), in float32."""
    return (1 - F.cosine_similarity(predicted.float(), target.float(), dim=-1)).mean()


class VqkdTrainable:
    """What `fit` trains; the teacher stays outside of the module."""

    def __init__(
        self, task: VqkdTraining, teacher: FrozenClip | FrozenEncoder, images: int
    ) -> None:
        self.network = VqkdNetwork(**task.network(teacher.widths["projected"]))
        self.module: nn.Module = VqkdLoss(self.network, task.commitment)
        self.task, self.teacher = task, teacher
        self.steps_per_epoch = task.optimisation.steps_per_epoch(images)

    def groups(self) -> list[dict[str, Any]]:
        """Weight decay as `optimisation.undecayed` says; the codebook is no parameter."""
        return parameter_groups(self.module, self.task.optimisation)

    def prepare(self, step: int, micros: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The teacher's tokens; before the first update also the k-means start of the codes."""
        ready = []
        for micro in micros:
            images = to_float(micro["image"])
            self.teacher.to(images.device)
            target = self.teacher(images, "own").projected[:, 1:]
            ready.append({"image": images, "target": target})
        if step == 0:
            self._start_codes([micro["image"] for micro in ready])
        return ready

    def _start_codes(self, images: list[Tensor]) -> None:
        """k-means on the tokens of the global batch; rank 0's result for all."""
        network, task = self.network, self.task
        tokens = torch.cat([network.encode(each) for each in images]).flatten(0, 1)
        tokens = distributed.gather(tokens)
        centres = cosine_kmeans(tokens, task.codes, task.kmeans_iterations, task.seed)
        network.quantize.embedding.weight.copy_(distributed.broadcast(centres))

    def after_step(self, step: int) -> dict[str, float]:
        """Moves the codes by the tokens of all ranks; usage counts codes since the epoch began."""
        book = self.network.quantize
        if step and int(step / self.steps_per_epoch) > int((step - 1) / self.steps_per_epoch):
            book.cluster_size.zero_()
        sums, counts = distributed.all_reduce(book.sums), distributed.all_reduce(book.counts)
        used = perplexity(counts)
        book.update(sums, counts, self.task.decay)
        return {"usage": float((book.cluster_size > 0).float().mean()), "perplexity": used}


@torch.no_grad()
def cosine_kmeans(tokens: Tensor, codes: int, iterations: int, seed: int) -> Tensor:
    """Unit centres (codes, C) of unit tokens (T, C): start at random tokens, then Lloyd's steps.

    Distance is the cosine; a centre without tokens stays. With fewer tokens than codes the start
    is drawn with replacement, as in the official code.
    """
    generator = torch.Generator().manual_seed(seed)
    if len(tokens) >= codes:
        start = torch.randperm(len(tokens), generator=generator)[:codes]
    else:
        start = torch.randint(len(tokens), (codes,), generator=generator)
    centres = tokens[start.to(tokens.device)].float()
    with torch.autocast(tokens.device.type, enabled=False):
        for _ in range(iterations):
            nearest = (tokens.float() @ centres.T).argmax(-1)
            counts = torch.bincount(nearest, minlength=codes)
            sums = torch.zeros_like(centres).index_add_(0, nearest, tokens.float())
            means = F.normalize(sums, dim=-1)
            centres = torch.where((counts == 0).unsqueeze(1), centres, means)
    return centres


def perplexity(counts: Tensor) -> float:
    """exp of the entropy (nats) of the codes' distribution: how many codes are used evenly."""
    share = counts / counts.sum().clamp(min=1)
    return float(torch.special.entr(share).sum().exp())


@torch.no_grad()
def measure(
    network: VqkdNetwork,
    teacher: FrozenClip | FrozenEncoder,
    source: ImageFolder,
    layout: Layout,
) -> tuple[dict[str, float], Tensor]:
    """usage (share of the codes that occur), perplexity, reconstruction (1 - cosine) of a split.

    And how often each code occurs, (codes,).
    """
    device = network.quantize.cluster_size.device
    counts = torch.zeros(network.size, dtype=torch.float64, device=device)
    total = torch.zeros(2, dtype=torch.float64, device=device)
    views = EvaluationTransform(size=network.image, resize=None).build()
    for batch in evaluation_batches(source, ToSample(views), 128, layout):
        images = to_float(batch["image"].to(device))
        quantised, codes, _ = network.quantize(network.encode(images))
        target = teacher.to(device)(images, "own").projected[:, 1:]
        distance = reconstruction_loss(network.decode(quantised), target)
        counts += torch.bincount(codes.flatten(), minlength=network.size)
        total += total.new_tensor([float(distance) * len(images), len(images)])
    distributed.all_reduce(counts)
    distance_sum, images_seen = distributed.all_reduce(total).tolist()
    metrics = {
        "usage": float((counts > 0).double().mean()),
        "perplexity": perplexity(counts),
        "reconstruction": distance_sum / images_seen,
    }
    return metrics, counts
