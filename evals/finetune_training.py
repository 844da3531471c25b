"""Fine-tuning at work: the encoder with a fresh norm and head, mixed images, soft targets."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evals.accuracy import accuracies, evaluation_batch
from evals.encoders import Timm, build_trainable, check_views, source
from evals.finetune import FineTuning
from methods.data.augment import ToSample
from methods.data.mixing import draw_mix, erase, mix_images, normalise, soft_targets, to_float
from methods.data.stream import Stream, evaluation_batches
from methods.engine.device import Micro, autocast
from methods.engine.distributed import setup
from methods.engine.loop import fit
from methods.engine.optim import parameter_groups
from methods.engine.work import Work

HEAD_STD = 0.02


class Classifier(nn.Module):
    """A timm encoder with its head; the loss is the cross entropy with soft targets."""

    def __init__(self, encoder: Timm) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, micro: Micro) -> dict[str, Tensor]:
        """The mean over images of "image" (B,3,H,W), normalised, with "targets" (B,classes)."""
        scores = self.encoder(micro["image"]).float()
        return {"loss": -(micro["targets"] * F.log_softmax(scores, -1)).sum(-1).mean()}


class Tuning:
    """What `fit` trains: everything, with layer decay; `prepare` erases and mixes on the device."""

    def __init__(self, module: Classifier, task: FineTuning) -> None:
        self.module: nn.Module = module
        self._task = task

    def groups(self) -> list[dict[str, Any]]:
        """By weight decay and layer."""
        return parameter_groups(self.module, self._task.optimisation, "encoder.")

    def prepare(self, step: int, micros: list[Micro]) -> list[Micro]:
        """Normalise -> erase -> mix, in timm's order; one mix for the whole global batch."""
        augmentation = self._task.augmentation
        size = augmentation.size
        mix = draw_mix(augmentation, self._task.seed, step, size, size)
        return [self._prepared(micro, mix) for micro in micros]

    def _prepared(self, micro: Micro, mix: Any) -> Micro:
        augmentation = self._task.augmentation
        images = normalise(to_float(micro["image"]), augmentation.statistics)
        if "erase" in micro:
            images = erase(images, micro["erase"])
        classes = len(self._task.data.classes)
        targets = soft_targets(micro["label"], mix, classes, augmentation.smoothing)
        return {"image": mix_images(images, mix), "targets": targets}

    def after_step(self, step: int) -> dict[str, float]:
        """Nothing follows an update."""
        return {}


def build_classifier(task: FineTuning, work: Work) -> Classifier:
    """The encoder with the head that the task's seed and `head_scale` give it."""
    found = source(work, task.encoder, task.seed, task.augmentation.statistics)
    check_views(found, task)
    classes = len(task.data.classes)
    encoder = build_trainable(found, task.seed, classes=classes, drop_path=task.drop_path)
    head = encoder.get_classifier()
    generator = torch.Generator().manual_seed(task.seed)
    nn.init.trunc_normal_(head.weight, std=HEAD_STD * task.head_scale, generator=generator)
    nn.init.zeros_(head.bias)
    return Classifier(encoder)


def run(task: FineTuning, work: Work) -> dict[str, float]:
    """Train, and evaluate the last weights on the validation images."""
    device = setup(work.layout)
    classifier = build_classifier(task, work)
    train = task.data.open(work.data, "train")
    views = ToSample(task.augmentation.build())
    optimisation = task.optimisation
    stream = partial(Stream, train, views, optimisation.batch, task.seed, work.layout)
    fit(Tuning(classifier, task), optimisation, stream, work, len(train), task.seed)
    encoder = classifier.to(device).eval().encoder
    statistics = task.validation.statistics
    batches = evaluation_batches(
        task.data.open(work.data, "validation"),
        ToSample(task.validation.build()),
        evaluation_batch(work.layout.device_batch),
        work.layout,
    )

    def logits(images: Tensor) -> Tensor:
        return encoder(normalise(to_float(images), statistics)).unsqueeze(1)

    with autocast(device, optimisation.precision):
        score = accuracies(batches, logits, device)
    return {"top1": float(score[0, 0]), "top5": float(score[1, 0])}
