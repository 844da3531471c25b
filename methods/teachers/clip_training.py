"""Training a small CLIP on captions, and its zero-shot accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.data.augment import ToSample
from methods.data.mixing import normalise, to_float
from methods.data.stream import Stream, evaluation_batches, split_batch
from methods.engine import distributed
from methods.engine.loop import fit
from methods.engine.optim import parameter_groups
from methods.errors import StageError
from methods.parts.augment import EvaluationTransform, Views
from methods.teachers.clip_network import build_clip, save_clip

if TYPE_CHECKING:
    from methods.data.imagefolder import ImageFolder
    from methods.engine.work import Layout, Work
    from methods.teachers.clip import ClipTraining

Tokenize = Callable[[list[str]], Tensor]
LARGEST_SCALE = math.log(100)  # CLIP, section 2.5: logits are never scaled by more than 100
TEMPERATURE = 0.1  # SLIP's image-image term, as SimCLR's


def train(task: ClipTraining, work: Work) -> dict[str, float]:
    """Trains, measures, refuses a teacher that knows nothing, writes the folder on rank 0."""
    if len(split_batch(task.optimisation.batch, work.layout, unit=1)) > 1:
        raise StageError(
            "layout",
            f"device_batch = {work.layout.device_batch} would cut the batch of "
            f"{task.optimisation.batch}, and a contrastive loss needs all its negatives at once: "
            "use more devices or a larger device batch",
        )
    source = task.data.open(work.data, "teacher")
    if source.captions is None:
        raise StageError("data", f"{type(task.data).__name__} has no captions to train a CLIP on")
    torch.manual_seed(task.seed)
    trainable = ClipTrainable(task)
    views: Views = task.augmentation.build()
    transform = ToSample(views if task.image_image_weight == 0 else TwoViews(views))
    batch = task.optimisation.batch
    stream = partial(Stream, source, transform, batch, task.seed, work.layout, unit=1)
    fit(trainable, task.optimisation, stream, work, len(source), task.seed)
    clip = trainable.network.clip.eval()
    accuracy = zero_shot(clip, task, task.data.open(work.data, "validation"), work.layout)
    steps = task.optimisation.steps(len(source))
    work.log(steps, zero_shot=accuracy)
    check_accuracy(accuracy, len(task.data.classes), task.minimum_zero_shot)
    if work.layout.rank == 0:
        save_clip(work.folder, clip.state_dict(), task.model, "trained here on captions")
    return {"zero_shot": accuracy}


def check_accuracy(accuracy: float, classes: int, minimum: float) -> None:
    """StageError("teacher") below `minimum` times chance."""
    if accuracy < minimum / classes:
        raise StageError(
            "teacher",
            f"zero-shot accuracy is {accuracy:.3f}, chance is {1 / classes:.3f} and "
            f"minimum_zero_shot asks for {minimum:g} times that: nothing may be distilled from "
            "noise; train the teacher longer or with another learning rate",
        )


class TwoViews:
    """The views of an image drawn twice; the second draw's image is "other" (3, H, W)."""

    def __init__(self, views: Views) -> None:
        self.views = views

    def __call__(self, image: Any, generator: Any) -> dict[str, Any]:
        first = self.views(image, generator)
        return {**first, "other": self.views(image, generator)["image"]}


class ClipTrainable:
    """What `fit` trains: the loss looks at the global batch."""

    def __init__(self, task: ClipTraining) -> None:
        self.network = ContrastiveClip(task.model, task.image_image_weight)
        self.module: nn.Module = self.network
        self.optimisation = task.optimisation
        self.tokenize = tokenizer(task.context)

    def groups(self) -> list[dict[str, Any]]:
        """Weight decay spares biases, gains and the logit scale."""
        return parameter_groups(self.module, self.optimisation)

    def prepare(self, step: int, micros: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Images to CLIP's statistics, captions to token ids on the device."""
        (micro,) = micros
        ready: dict[str, Any] = {
            name: normalise(to_float(micro[name]), "clip")
            for name in ("image", "other")
            if name in micro
        }
        return [{**ready, "text": self.tokenize(micro["caption"]).to(ready["image"].device)}]

    def after_step(self, step: int) -> dict[str, float]:
        """Caps the logit scale as CLIP does."""
        with torch.no_grad():
            scale = self.network.clip.logit_scale.clamp_(0, LARGEST_SCALE).detach()
        return {"logit_scale": float(scale.exp())}


def tokenizer(context: int) -> Tokenize:
    """open_clip's BPE tokenizer: captions -> token ids int64 (B, context). Reads no network."""
    return open_clip.SimpleTokenizer(context_length=context)


class ContrastiveClip(nn.Module):
    """A CLIP with its loss; with `image_image_weight` > 0 a head for SLIP's second term."""

    def __init__(self, model: dict[str, Any], image_image_weight: float = 0.0) -> None:
        super().__init__()
        self.clip = build_clip(model)
        self.image_image_weight = image_image_weight
        if image_image_weight > 0:
            width = model["embed_dim"]
            hidden = nn.Linear(width, 4 * width)
            self.head = nn.Sequential(hidden, nn.ReLU(), nn.Linear(4 * width, width))

    def forward(self, micro: dict[str, Tensor]) -> dict[str, Tensor]:
        """image (B, 3, H, W) normalised, text (B, T) ids, other (B, 3, H, W) for SLIP's term.

        Equal captions go through the text tower once.
        """
        embedded = self.clip.visual(micro["image"])
        unique, which = torch.unique(micro["text"], dim=0, return_inverse=True)
        texts = F.normalize(self.clip.encode_text(unique).float(), dim=-1)[which]
        texts = distributed.gather(texts)
        images = distributed.gather(F.normalize(embedded.float(), dim=-1))
        same = equal_rows(distributed.gather(micro["text"]))
        contrastive = contrastive_loss(images, texts, same, self.clip.logit_scale.exp())
        if self.image_image_weight == 0:
            return {"loss": contrastive}
        views = [self.head(embedded), self.head(self.clip.visual(micro["other"]))]
        views = [distributed.gather(F.normalize(view.float(), dim=-1)) for view in views]
        image_image = view_loss(views[0], views[1])
        loss = contrastive + self.image_image_weight * image_image
        return {"loss": loss, "image_text": contrastive, "image_image": image_image}


def equal_rows(text: Tensor) -> Tensor:
    """bool (B, B): which rows of (B, T) are equal."""
    _, which = torch.unique(text, dim=0, return_inverse=True)
    return which[:, None] == which[None, :]


def contrastive_loss(images: Tensor, texts: Tensor, same: Tensor, scale: Tensor) -> Tensor:
    """InfoNCE in both directions, several positives: mean cross entropy to `same` / its row sum.

    images, texts (B, P) of unit length; same (B, B) bool, symmetric, True on the diagonal.
    With all captions different it is CLIP's loss.
    """
    logits = scale * images @ texts.T
    target = same.float() / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def view_loss(first: Tensor, second: Tensor) -> Tensor:
    """SimCLR's NT-Xent of two views (B, P) of unit length: each row finds its other view."""
    both = torch.cat([first, second])
    logits = (both @ both.T / TEMPERATURE).masked_fill(
        torch.eye(len(both), dtype=torch.bool, device=both.device), -torch.inf
    )
    return F.cross_entropy(logits, torch.arange(len(both), device=both.device).roll(len(first)))


@torch.no_grad()
def class_features(clip: Any, task: ClipTraining) -> Tensor:
    """Unit text features (K, P) of the classes, averaged over the prompts."""
    tokenize, device = tokenizer(task.context), clip.logit_scale.device
    features = [
        clip.encode_text(tokenize([p.format(c) for c in task.data.classes]).to(device), True)
        for p in task.prompts
    ]
    return F.normalize(torch.stack(features).mean(0), dim=-1)


@torch.no_grad()
def zero_shot(clip: Any, task: ClipTraining, source: ImageFolder, layout: Layout) -> float:
    """Share of the images whose class has the nearest text feature, each image counted once."""
    device = clip.logit_scale.device
    classes = class_features(clip, task)
    size = EvaluationTransform(size=task.image, resize=task.image, statistics="clip")
    counts = torch.zeros(2, device=device)
    for batch in evaluation_batches(source, ToSample(size.build()), 256, layout):
        images = normalise(to_float(batch["image"].to(device)), "clip")
        found = (clip.encode_image(images) @ classes.T).argmax(-1)
        hits = (found == batch["label"].to(device)).sum()
        counts += torch.stack([hits, torch.full_like(hits, len(found))])
    right, total = distributed.all_reduce(counts).tolist()
    return right / total
