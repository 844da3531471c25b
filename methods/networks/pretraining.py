"""Running a pretraining stage: frozen networks, the stream of images, the loop, the encoder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from methods.data.augment import ToSample
from methods.data.stream import Stream
from methods.engine import distributed, health
from methods.engine.loop import MOST_LINES, fit
from methods.engine.parallel import whole
from methods.engine.pictures import draw
from methods.engine.work import Work, read_line
from methods.errors import StageError
from methods.networks.export import write_encoder
from methods.networks.pictures import strips
from methods.networks.pretrainer import MaskedModelling, Pretrainer
from methods.parts.model import Method
from methods.pretrain import milestone_folder
from methods.teachers import load_teacher, load_tokenizer

if TYPE_CHECKING:
    from methods.pretrain import Pretraining


def pretrain(task: Pretraining, work: Work) -> dict[str, float]:
    """See `methods.pretrain.Pretraining.run`."""
    method = task.method
    try:
        method.check()
    except ValueError as error:
        raise StageError("layout", f"method {method.name}: {error}") from error
    device = distributed.setup(work.layout)
    source = task.data.open(work.data, "train")
    frozen = load_frozen(method, work, device)
    torch.manual_seed(task.seed)
    trainable = WithMilestones(task, frozen, work, len(source))
    transform = ToSample(method.augmentation.build(), method.masking, method.encoder.grid)

    def stream(start: int) -> Iterable[list[dict[str, Any]]]:
        if work.together is not None:
            images: Iterable[list[dict[str, Any]]] = work.together.images(method.masking, start)
            return images
        batch = method.optimisation.batch
        return Stream(source, transform, batch, task.seed, work.layout, start=start, unit=1)

    fit(trainable, method.optimisation, stream, work, len(source), task.seed)
    if distributed.rank() == 0:
        state = trainable.pretrainer.encoder.model.state_dict()
        write_encoder(state, method.encoder, method.augmentation.statistics, work.folder)
    draw(work, lambda: strips(task, trainable, work))
    return last_losses(work)


def count_parameters(method: Method, frozen: Mapping[str, Any]) -> int:
    """Trainable parameters of encoder and decoder, built without memory.

    `frozen`: by role what tells a teacher's `widths` or a tokenizer's `size`; the tasks will do.
    """
    with torch.device("meta"):
        network = Pretrainer(method, frozen)
    parts = (network.encoder, network.decoder)
    return sum(each.numel() for part in parts for each in part.parameters() if each.requires_grad)


def load_frozen(method: Method, work: Work, device: torch.device) -> dict[str, nn.Module]:
    """The method's teachers and tokenizers by role, on `device`.

    Raises StageError("needs") where one is missing and "teacher" where its grid is another.
    """
    frozen: dict[str, nn.Module] = {}
    for role in method.needs:
        folder = work.needs.get(role)
        if folder is None:
            raise StageError("needs", f"method {method.name} needs a stage for {role!r}")
        cells = not method.encoder.class_token
        frozen[role] = _frozen(folder, None if cells else method.encoder.grid, work).to(device)
        if (folder / "tokenizer.json").exists():
            check_grid(role, frozen[role], method)
        elif cells:
            check_cells(role, frozen[role], method)
    return frozen


def _frozen(folder: Path, grid: tuple[int, int] | None, work: Work) -> nn.Module:
    """The frozen network in `folder`, the same object for all stages of this process."""

    def load() -> nn.Module:
        tokenizer = (folder / "tokenizer.json").exists()
        return load_tokenizer(folder) if tokenizer else load_teacher(folder, grid=grid)

    return load() if work.together is None else work.together.frozen((folder, grid), load)


def check_grid(role: str, network: Any, method: Method) -> None:
    """Raise StageError("teacher") where the tokenizer's grid is not the student's."""
    if tuple(network.grid) != method.encoder.grid:
        raise StageError(
            "teacher",
            f"{role} has a grid of {network.grid} patches, the student {method.encoder.grid}",
        )


def check_cells(role: str, teacher: Any, method: Method) -> None:
    """Raise StageError("teacher") where a Swin's cells do not hold equal squares of its patches."""
    (rows, columns), (cell_rows, cell_columns) = teacher.grid, method.encoder.grid
    side = rows // cell_rows
    if side < 1 or (rows, columns) != (side * cell_rows, side * cell_columns):
        raise StageError(
            "teacher",
            f"{role} has a grid of {teacher.grid} patches, which the student's cells "
            f"{method.encoder.grid} do not divide",
        )


class WithMilestones(MaskedModelling):
    """Pretraining that also keeps the encoder at the task's milestones."""

    def __init__(
        self, task: Pretraining, frozen: dict[str, nn.Module], work: Work, images: int
    ) -> None:
        super().__init__(task.method, frozen)
        self.folder, self.work = work.folder, work
        total = task.method.optimisation.steps(images)
        self.every = math.ceil(total / MOST_LINES)
        self.milestones = {max(1, round(each * total)): each for each in task.milestones}

    def after_step(self, step: int) -> dict[str, float]:
        scalars = super().after_step(step)
        if self.attention is not None and step % self.every == 0:
            health.check_attention(self.work, self.attention)
        share = self.milestones.get(step + 1)
        if share is not None:
            state = whole(self.pretrainer.encoder.model.state_dict())
            if distributed.rank() == 0:
                folder = milestone_folder(self.folder, share)
                statistics = self.method.augmentation.statistics
                write_encoder(state, self.method.encoder, statistics, folder)
        return scalars


def last_losses(work: Work) -> dict[str, float]:
    """The losses of the last line of metrics.jsonl, averages over its interval; {} without one."""
    if not work.metrics.exists():
        return {}
    lines = work.metrics.read_bytes().splitlines()
    entry = (read_line(lines[-1]) if lines else None) or {}
    return {name: value for name, value in entry.items() if name.startswith("loss")}
