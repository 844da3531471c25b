"""Stages for the tests on Slurm: one that counts and says who counted, one that trains on ranks."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from harness.backends import slurm_job
from harness.store import write_json
from methods.engine.work import Work
from methods.errors import StageError

HOLD_AT = 6


@dataclass(frozen=True)
class Counting:
    """Counts to `steps` and saves after every `save` steps.

    hold: a file without which it waits after step HOLD_AT, so that a test can interrupt it at a
    known place. fails: a file while which exists it fails. Leaves the number of each step in
    metrics.jsonl, and in starts.log who began and at which step.
    """

    kind: ClassVar[str] = "counting"
    version: ClassVar[int] = 1

    name: str
    steps: int = 8
    save: int = 1
    hold: str = ""
    fails: str = ""
    seed: int = 0
    threads: int = 0

    def run(self, work: Work) -> dict[str, float]:
        done = self.begin(work)
        if self.fails and Path(self.fails).exists():
            raise StageError("data", f"{self.fails}: there it is")
        while done < self.steps:
            done += 1
            work.log(done, loss=1 / done)
            reason = self.wait(work) if done == HOLD_AT else work.stop()
            if reason or done % self.save == 0 or done == self.steps:
                work.owned()
                write_json(work.folder / "state" / "count.json", {"step": done})
            if reason and done < self.steps:
                raise StageError("stopped", f"{reason} after step {done}, saved")
        return {"steps": float(done)}

    def begin(self, work: Work) -> int:
        """The step that was saved last."""
        state = work.folder / "state" / "count.json"
        state.parent.mkdir(exist_ok=True)
        done = json.loads(state.read_text())["step"] if state.exists() else 0
        work.report["redone_steps"] = work.logged_after(done)
        work.rewind(done)
        with (work.folder / "starts.log").open("a") as file:
            file.write(f"{slurm_job.owner()} {done}\n")
        return int(done)

    def wait(self, work: Work) -> str | None:
        """Waits for the file `hold`; why to stop, if there was a reason."""
        while self.hold and not Path(self.hold).exists() and not work.stop():
            time.sleep(0.05)
        return work.stop()


@dataclass(frozen=True)
class Training:
    """Fits a line to numbers that depend on the sample alone, with the project's own loop.

    hold: a file without which it waits before update HOLD_AT + 1 is done.
    """

    kind: ClassVar[str] = "training"
    version: ClassVar[int] = 1

    steps: int = 12
    batch: int = 8
    hold: str = ""
    seed: int = 0
    threads: int = 1

    def run(self, work: Work) -> dict[str, float]:
        import torch

        from methods.engine.loop import fit
        from methods.parts.optimisation import Optimisation

        torch.manual_seed(self.seed)
        optimisation = Optimisation(
            epochs=1, iterations=self.steps, batch=self.batch, learning_rate=0.05
        )
        line = Line(self.hold)
        fit(line, optimisation, self.stream(work), work, images=self.batch * self.steps)
        return {"weight": float(line.module.linear.weight.detach().sum())}

    def stream(self, work: Work) -> Any:
        import torch

        def batches(start: int) -> Any:
            share = self.batch // work.layout.world
            first = work.layout.rank * share
            for step in range(start, self.steps):
                rows = torch.arange(step * self.batch + first, step * self.batch + first + share)
                x = torch.sin(rows[:, None] * torch.tensor([1.0, 2.0, 3.0]))
                yield [{"x": x, "y": x.sum(1, keepdim=True)}]

        return batches


class Line:
    """A trainable of `methods.engine.loop`: three weights and a bias."""

    def __init__(self, hold: str) -> None:
        import torch
        from torch import nn

        class Module(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(3, 1)

            def forward(self, micro: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
                return {"loss": (self.linear(micro["x"]) - micro["y"]).square().mean()}

        self.module = Module()
        self.hold = hold

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.module.parameters()), "weight_decay": 0.0, "lr_scale": 1.0}]

    def prepare(self, step: int, micros: list[Any]) -> list[Any]:
        while step == HOLD_AT and self.hold and not Path(self.hold).exists():
            time.sleep(0.05)
        return micros

    def after_step(self, step: int) -> dict[str, float]:
        return {}
