"""The official step of an evaluation, or of VQ-KD's training, written plainly, as a peer.

MAE's main_linprobe and main_finetune on a timm encoder, mmengine's step of mmsegmentation's model.
MAE's code asks for timm 0.3.2, whose attention is plain products: so is it here. Its loader's work
(normalising and erasing) is left out, while ours does it in the step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.bench import peer_vqkd
from harness.bench.counting import SMALL
from harness.bench.evaluations import NO_FILES, EvaluationSubject, labelled, masked
from harness.bench.measure import Clock
from harness.bench.peer import Peer
from harness.bench.subject import TOKENIZER, Subject
from methods.data.mixing import normalise, to_float
from methods.engine.optim import parameter_groups
from methods.errors import InputError

Made = tuple[tuple[str, str], nn.Module, Callable[[int], Tensor], Callable[[], None]]
"""Name and version, the network, the loss of so many images, and the update."""


def load(precision: str, subject: Subject, clock: Clock) -> Peer:
    """The official step of the subject; see `harness.bench.peer.load_peer`."""
    if subject.name == TOKENIZER:
        return peer_vqkd.load(precision, subject, clock)
    return step_of(STEPS, "official", precision, subject, clock)


def step_of(
    steps: dict[str, Callable[..., Made]], word: str, precision: str, subject: Subject, clock: Clock
) -> Peer:
    """The one of `steps` that is of the subject's evaluation, for --peer `word`."""
    if not isinstance(subject, EvaluationSubject) or subject.name not in steps:
        known = f"it has {', '.join(steps)} (--evals)"
        raise InputError(f"--peer {word}: no step of {subject.name}; {known}")
    torch.manual_seed(0)
    sizes = {*SMALL, subject.optimisation.batch}
    about, network, loss, update = steps[subject.name](subject.task, sizes, clock.device)
    return Peer(about, precision, (), network, loss, update, subject.optimisation.batch, clock)


def linear_probe(task: Any, sizes: set[int], device: torch.device) -> Made:
    """main_linprobe.py: everything frozen but the head, a BatchNorm before it, LARS, one rate."""
    encoder = plain_encoder(task).requires_grad_(False)
    head = encoder.get_classifier().requires_grad_(True)
    encoder.head = nn.Sequential(nn.BatchNorm1d(head.in_features, affine=False, eps=1e-6), head)
    encoder.to(device).train()
    optimizer = Lars(encoder.head.parameters(), task.optimisation.peak)
    batches = {size: _pictures(task, size, device) for size in sizes}

    def loss(size: int) -> Tensor:
        images, labels = batches[size]
        return F.cross_entropy(encoder(images), labels)

    return ("official", "MAE main_linprobe"), encoder, loss, updating(optimizer)


def fine_tuning(task: Any, sizes: set[int], device: torch.device) -> Made:
    """main_finetune.py: drop path, layer decay, torch's AdamW as it comes, mixup and cutmix."""
    from timm.loss import SoftTargetCrossEntropy

    encoder = plain_encoder(task, drop_path_rate=task.drop_path, global_pool="avg")
    encoder.to(device).train()
    groups = parameter_groups(encoder, task.optimisation)
    optimizer = torch.optim.AdamW(groups, task.optimisation.peak)
    for group in optimizer.param_groups:
        group["lr"] *= group["lr_scale"]
    batches = {size: _pictures(task, size, device) for size in sizes}
    mix, criterion = _mixing(task), SoftTargetCrossEntropy()

    def loss(size: int) -> Tensor:
        images, labels = batches[size]
        images, targets = mix(images.clone(), labels)  # it mixes in place
        found: Tensor = criterion(encoder(images), targets)
        return found

    return ("official", "MAE main_finetune"), encoder, loss, updating(optimizer)


def segmenting(task: Any, sizes: set[int], device: torch.device) -> Made:
    """mmengine's train_step of the same model: preprocess, losses, its wrapped AdamW."""
    import mmengine
    from mmengine.optim import OptimWrapper

    from evals.encoders import source
    from evals.segmentation_mmseg import PixelData, SegDataSample
    from evals.segmentation_model import build_segmentor

    found = source(NO_FILES, task.encoder, task.seed, task.statistics)
    segmentor = build_segmentor(task, found).to(device).train()
    groups = parameter_groups(segmentor, task.optimisation, "backbone.encoder.")
    wrapper = OptimWrapper(torch.optim.AdamW(groups, task.optimisation.peak))
    batches = {size: masked(task, size) for size in sizes}

    def loss(size: int) -> Tensor:
        micro = batches[size]
        labels = [SegDataSample(gt_sem_seg=PixelData(data=each.long())) for each in micro["label"]]
        data = {"inputs": list(micro["image"]), "data_samples": labels}
        losses = segmentor._run_forward(segmentor.data_preprocessor(data, True), mode="loss")
        total: Tensor = segmentor.parse_losses(losses)[0]
        return total

    def update() -> None:
        wrapper.step()
        wrapper.zero_grad()

    return ("official", f"mmengine {mmengine.__version__}"), segmentor, loss, update


STEPS = {"linear": linear_probe, "finetune": fine_tuning, "segmentation": segmenting}


def plain_encoder(task: Any, **changes: Any) -> Any:
    """The task's encoder in timm with a head over its classes, its attention by plain products."""
    name, arguments = task.encoder.timm()
    wanted = {**arguments, "num_classes": len(task.data.classes), **changes}
    encoder = timm.create_model(name, **wanted)
    for each in encoder.modules():
        if hasattr(each, "fused_attn"):
            setattr(each, "fused_attn", False)  # noqa: B010
    return encoder


def _mixing(task: Any) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """timm's mixup and cutmix, or smoothed targets alone where the task mixes nothing."""
    from timm.data.mixup import Mixup, mixup_target

    value, classes = task.augmentation, len(task.data.classes)
    if not value.mixup and not value.cutmix:
        return lambda images, labels: (images, mixup_target(labels, classes, 1.0, value.smoothing))
    found: Any = Mixup(value.mixup, value.cutmix, None, value.mix_probability, value.switch,
                       "batch", value.smoothing, classes)  # fmt: skip
    return found


def _pictures(task: Any, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Normalised pictures and labels, as the official loader gives them."""
    micro = labelled(task, size)
    images = normalise(to_float(micro["image"]), task.augmentation.statistics)
    return images.to(device), micro["label"].to(device)


def updating(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """The optimiser's step, and gradients cleared."""

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return update


class Lars(torch.optim.Optimizer):
    """MAE's util/lars.py: a trust ratio for matrices, momentum, no weight decay."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for item in group["params"]:
                change = item.grad
                if item.ndim > 1:
                    weight, gradient = torch.norm(item), torch.norm(change)
                    one = torch.ones_like(weight)
                    ratio = torch.where(gradient > 0.0, 0.001 * weight / gradient, one)
                    change = change.mul(torch.where(weight > 0.0, ratio, one))
                buffer = self.state[item].setdefault("mu", torch.zeros_like(item))
                buffer.mul_(0.9).add_(change)
                item.add_(buffer, alpha=-group["lr"])
