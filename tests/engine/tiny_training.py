"""A training of a few hundred parameters, in this process or as `python tiny_training.py JSON`."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from methods.engine.device import Micro
from methods.engine.loop import fit
from methods.engine.optim import parameter_groups
from methods.engine.work import Layout, Work
from methods.parts.optimisation import Optimisation

IMAGES = 20


class Net(nn.Module):
    """Regression with dropout and a buffer that follows the weights."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 8)
        self.drop = nn.Dropout(dropout)
        self.outer = nn.Linear(8, 2)
        self.register_buffer("average", torch.zeros(8, 6))
        self.average: Tensor

    def forward(self, micro: Micro) -> dict[str, Tensor]:
        out = self.outer(self.drop(nn.functional.gelu(self.inner(micro["image"]))))
        errors = ((out.float() - micro["target"]) ** 2).mean(dim=1)
        if "hidden" in micro:  # a mean over a varying number of patches per image
            return {"loss": (errors * micro["hidden"]).sum() / micro["hidden"].sum()}
        return {"loss": errors.mean(), "size": out.float().abs().mean()}


class Tiny:
    """What `fit` trains: the target is the sum of pairs; a follower is updated after each step."""

    def __init__(
        self, optimisation: Optimisation, dropout: float, weighted: bool, pause: float
    ) -> None:
        torch.manual_seed(7)
        self.module = Net(dropout)
        self.optimisation, self.weighted, self.pause = optimisation, weighted, pause

    def groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self.module, self.optimisation)

    def prepare(self, step: int, micros: list[Micro]) -> list[Micro]:
        return [self._with_targets(micro) for micro in micros]

    def _with_targets(self, micro: Micro) -> Micro:
        image = micro["image"]
        whole = {"image": image, "target": image.view(-1, 2, 3).sum(dim=2)}
        if self.weighted:
            hidden = 1 + micro["index"] % 5
            whole |= {"hidden": hidden, "weight": hidden.sum()}
        return whole

    def after_step(self, step: int) -> dict[str, float]:
        time.sleep(self.pause)
        self.module.average.lerp_(self.module.inner.weight.detach(), 0.5)
        return {"follower": float(self.module.average.sum().nan_to_num())}


def pixels(index: int) -> Tensor:
    """Image `index`: float (6,)."""
    values = np.random.default_rng(index).normal(size=6)
    return torch.tensor(values, dtype=torch.float32)


def stream_from(
    layout: Layout, batch: int, start: int, seen: Path | None, broken_at: int | None
) -> Iterator[list[Micro]]:
    """Endless steps of this rank's micro-batches; what was seen is appended to `seen`."""
    step = start
    while True:
        indices = np.arange(step * batch, (step + 1) * batch) % IMAGES
        mine = np.array_split(indices, layout.world)[layout.rank]
        size = layout.device_batch or len(mine)
        parts = [mine[place : place + size] for place in range(0, len(mine), size)]
        if seen is not None:
            with seen.with_name(f"{seen.name}{layout.rank}").open("a") as file:
                file.write(json.dumps([step, mine.tolist()]) + "\n")
        micros = [
            {"image": torch.stack([pixels(i) for i in part]), "index": torch.from_numpy(part)}
            for part in parts
        ]
        if step == broken_at:
            micros[0]["image"][0, 0] = float("inf")
        yield micros
        step += 1


def run(
    folder: str | Path,
    iterations: int = 12,
    batch: int = 8,
    rank: int = 0,
    world: int = 1,
    device_batch: int | None = None,
    dropout: float = 0.2,
    weighted: bool = False,
    pause: float = 0.0,
    checkpoint_seconds: float = 1e9,
    stop_at: int | None = None,
    kill_at_save: int | None = None,
    broken_at: int | None = None,
    seen: str | None = None,
    clip: float | None = 1.0,
    precision: Any = "fp32",
    optimizer: Any = "adamw",
    rate: float = 0.02,
) -> tuple[dict[str, Tensor], Work]:
    """Train in `folder`; the trained state and the work with its report.

    stop_at: updates after which stop() gives a reason. kill_at_save: the update whose save
    SIGKILL precedes. broken_at: the update whose first pixel is infinite.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    asked = iter(range(1, 1_000_000))

    def owned() -> None:
        """Asked before a line is written, and before its update is saved."""
        logged = work.metrics.read_text() if work.metrics.exists() else ""
        if kill_at_save and f'"step": {kill_at_save},' in logged:
            os.kill(os.getpid(), signal.SIGKILL)

    layout = Layout(rank=rank, world=world, local_rank=rank, device_batch=device_batch)
    work = Work(
        Path(folder),
        layout=layout,
        stop=lambda: "preempted" if next(asked) == stop_at else None,
        owned=owned,
        checkpoint_seconds=checkpoint_seconds,
    )
    optimisation = Optimisation(
        epochs=1,
        iterations=iterations,
        warmup_iterations=2,
        batch=batch,
        learning_rate=rate,
        clip=clip,
        precision=precision,
        optimizer=optimizer,
    )
    tiny = Tiny(optimisation, dropout, weighted, pause)

    def stream(start: int) -> Iterator[list[Micro]]:
        return stream_from(layout, batch, start, Path(seen) if seen else None, broken_at)

    fit(tiny, optimisation, stream, work, IMAGES, seed=3)
    return {name: item.clone() for name, item in tiny.module.state_dict().items()}, work


def lines(folder: str | Path) -> list[dict[str, float]]:
    """metrics.jsonl without what depends on the clock and the machine."""
    text = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    clock = ("time", "images_per_second", "system/")
    return [
        {name: value for name, value in json.loads(line).items() if not name.startswith(clock)}
        for line in text
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(**json.loads(sys.argv[1]))
