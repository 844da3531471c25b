"""The one training loop: every stage that trains calls `fit`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from methods.engine import checkpoint, distributed, health
from methods.engine.attention import choose_kernels
from methods.engine.device import Micro, autocast, memory_errors, rows, seed_generators, to_device
from methods.engine.drop_path import skip_dropped
from methods.engine.execution import Compiler, checkpoint_blocks
from methods.engine.optim import Group, build_optimizer, set_rate
from methods.engine.parallel import Alone, join, whole
from methods.engine.record import Averages, Cost
from methods.engine.work import Work
from methods.errors import StageError
from methods.parts.optimisation import Optimisation

Stream = Callable[[int], Iterable[list[Micro]]]

MOST_LINES = 100
"""Lines of metrics.jsonl per stage; the averages between two lines lose nothing."""


class Trainable(Protocol):
    """What `fit` trains.

    `module` is put into training mode and checkpointed whole: parameters and buffers. Called with
    a micro-batch from `prepare` it returns scalars, the same names each time; "loss" is minimised,
    the others are logged. Frozen networks stay outside of it.
    """

    module: nn.Module

    def groups(self) -> list[Group]:
        """Groups for the optimiser: "params", "weight_decay", "lr_scale"."""

    def prepare(self, step: int, micros: list[Micro]) -> list[Micro]:
        """What `module` gets for this rank's micro-batches, which are on the device already.

        Runs without gradient, under autocast, with torch's generator seeded by seed, step and
        rank. A "weight" in each result (a number or a 0-d tensor) says how much of the global mean
        a micro-batch makes up where the loss is a mean over something else than images.
        """

    def after_step(self, step: int) -> dict[str, float]:
        """After the update: moving averages, the codebook; scalars to log."""


def fit(
    trainable: Trainable,
    optimisation: Optimisation,
    stream: Stream,
    work: Work,
    images: int,
    seed: int = 0,
) -> None:
    """Train to the end of the schedule, from the newest checkpoint in `work.folder`/state if any.

    stream: called with the number of updates done; yields this rank's micro-batches of each
    further update. images: size of the training set. An update minimises the mean over the global
    batch, however ranks and micro-batches cut it. Dropout draws from (seed, step, rank, micro), so
    a resumed run repeats an uninterrupted one bit for bit where the device does.

    Leaves in `work.report`: device, seconds (of updates that count), images, images_per_second,
    gflops, steps, resumed, redone_steps, peak_memory_bytes, execution. Raises StageError: "stopped"
    after saving, "nan", "disk", "memory", "data" (the stream ended), "layout", "weights" (a
    checkpoint of another network).
    """
    device = distributed.setup(work.layout)
    with memory_errors(work.layout):
        run = _Run(trainable, optimisation, work, images, seed, device)
        run.restore()
        with run.writer:
            run.train(stream)


class _Run:
    """The state of one call of `fit`."""

    def __init__(
        self,
        trainable: Trainable,
        optimisation: Optimisation,
        work: Work,
        images: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.trainable, self.optimisation, self.work = trainable, optimisation, work
        self.images, self.seed, self.device = images, seed, device
        self.module = trainable.module.to(device).train()
        choose_kernels(self.module, device, optimisation.precision)
        skip_dropped(self.module)
        self.compiler: Compiler | None = None
        self.parallel: Alone
        self.optimizer: torch.optim.Optimizer
        self.scaler = torch.amp.GradScaler(device.type, enabled=optimisation.precision == "fp16")
        self.averages = Averages()
        self.cost = Cost(work, device, optimisation.batch)
        self.state = work.folder / "state"
        self.writer = checkpoint.Writer(self.state)
        self.done = 0
        self.total = optimisation.steps(images)
        self.saved = 0
        self.saved_at = time.monotonic()

    def restore(self) -> None:
        """Take up the newest whole checkpoint, the same on all ranks; join the ranks' models."""
        path, notes = checkpoint.newest(self.state) if distributed.rank() == 0 else (None, [])
        path, notes = distributed.broadcast_object((path, notes))
        for note in notes:
            self.work.alarm(note)
        state = checkpoint.read(path) if path is not None else None
        if state is not None:
            with self._of_this_network():
                self.module.load_state_dict(state["module"])
        self.parallel = join(self.module, self.work.layout, self.device)
        if self.work.layout.compile:
            self.compiler = Compiler(self.module, self.work.alarm)
        if self.work.layout.activation_checkpointing:
            checkpoint_blocks(self.module)
        self.optimizer = build_optimizer(self.trainable.groups(), self.optimisation)
        if state is not None:
            self._load(state)
        if distributed.rank() == 0:
            checkpoint.discard_unfinished(self.state)
        self.cost.resume(self.done)

    def _load(self, state: dict[str, Any]) -> None:
        with self._of_this_network():
            part = self.parallel.part(state["optimizer"], self.optimizer)
            self.optimizer.load_state_dict(part)
        self.scaler.load_state_dict(state["scaler"])
        self.averages.load(state["averages"])
        self.cost.load(state["cost"])
        self.done = self.saved = state["step"]

    @contextmanager
    def _of_this_network(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError, KeyError) as error:
            text = " ".join(str(error).split())
            raise StageError(
                "weights", f"the checkpoint in {self.state} is of another network: {text}"
            ) from error

    def train(self, stream: Stream) -> None:
        """Update until the schedule ends, saving and leaving when asked to."""
        images = stream(self.done) if self.done < self.total else ()
        if hasattr(images, "alarm"):
            images.alarm = self.work.alarm
        batches = iter(images)
        self.cost.start()
        for step in range(self.done, self.total):
            with self.cost.elsewhere():
                self.work.turn(step)
            micros = next(batches, None)
            if micros is None:
                raise StageError("data", f"the stream of images ended at update {step}")
            save, stop = self._update(step, micros)
            self.done = step + 1
            self._log(step)
            self.writer.check()
            if save or (stop and self.done < self.total):
                self._save()
            if stop and self.done < self.total:
                self.writer.finish()
                raise StageError("stopped", f"{stop} after update {self.done}, saved")
        if self.saved < self.done:
            self._save()
        self.writer.finish()
        self.cost.report()
        self.work.report["execution"] = self._execution()
        self.parallel.restore()

    def _execution(self) -> str:
        """How the blocks were executed: "eager", "compiled, activation checkpointing" ..."""
        compiled = self.compiler is not None and self.compiler.on
        again = ", activation checkpointing" * self.work.layout.activation_checkpointing
        return ("compiled" if compiled else "eager") + again + self.parallel.execution

    def _update(self, step: int, micros: list[Micro]) -> tuple[bool, str | None]:
        """One update; whether to save, and why to stop, after it: the same on all ranks."""
        micros = [to_device(micro, self.device) for micro in micros]
        seed_generators(self.seed, step, distributed.rank(), 0)
        with self.cost.counted(sum(rows(micro) for micro in micros)):
            with torch.no_grad(), autocast(self.device, self.optimisation.precision):
                self.parallel.gather()
                prepared = self.trainable.prepare(step, micros)
            names, values = self._backward(step, prepared, self._shares(micros, prepared))
        stop = self.work.stop()
        # So early that no more than an interval's work is unsaved while it is written.
        interval = self.work.checkpoint_seconds - self.writer.seconds
        due = time.monotonic() - self.saved_at >= interval
        flags = values.new_tensor([float(due and distributed.rank() == 0), float(bool(stop))])
        # The one collective and the one synchronisation of an update.
        numbers = distributed.all_reduce(torch.cat([values, flags])).tolist()
        metrics = dict(zip(names, numbers, strict=False))
        self._check(step, metrics)
        self._apply(step)
        extra = self.trainable.after_step(step)
        self._check(step, extra)
        self.averages.add({**metrics, **extra})
        self.cost.count()
        return numbers[-2] > 0, (stop or "another rank was asked to stop") if numbers[-1] else None

    def _backward(
        self, step: int, prepared: list[Micro], shares: list[Any]
    ) -> tuple[list[str], Tensor]:
        """Gradients of the global mean; names and this rank's part of the metrics (names,)."""
        names: list[str] = []
        values = torch.zeros((), device=self.device)
        for number, (micro, share) in enumerate(zip(prepared, shares, strict=True)):
            seed_generators(self.seed, step, distributed.rank(), number + 1)
            with self.parallel.syncing(number == len(prepared) - 1):
                with autocast(self.device, self.optimisation.precision):
                    losses = self.parallel.model(micro)
                # DDP and FSDP average over the ranks; the shares are of the whole.
                self.scaler.scale(losses["loss"] * (share * distributed.world())).backward()
            names = sorted(losses)
            values = values + torch.stack([losses[name].detach().float() for name in names]) * share
        return names, values

    def _shares(self, micros: list[Micro], prepared: list[Micro]) -> list[Any]:
        """The part of the global mean that each micro-batch makes up; all ranks' add up to 1."""
        if not prepared:
            raise StageError("layout", f"rank {distributed.rank()} has no part of the batch")
        if "weight" not in prepared[0]:
            return [rows(micro) / self.optimisation.batch for micro in micros]
        weights = [
            torch.as_tensor(micro["weight"], device=self.device, dtype=torch.float32)
            for micro in prepared
        ]
        total = distributed.all_reduce(torch.stack(weights).sum())
        return [weight / total for weight in weights]

    def _check(self, step: int, metrics: dict[str, float]) -> None:
        """Raise StageError("nan") where a metric is not finite."""
        for name, value in metrics.items():
            if not math.isfinite(value):
                good = f"update {self.saved}" if self.saved else "none"
                raise StageError(
                    "nan", f"{name} is {value} at update {step + 1}; last good checkpoint: {good}"
                )

    def _apply(self, step: int) -> None:
        set_rate(self.optimizer, self.optimisation.rate(step, self.images))
        if self.optimisation.clip is not None:
            self.scaler.unscale_(self.optimizer)
            parameters = [item for group in self.optimizer.param_groups for item in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.optimisation.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _log(self, step: int) -> None:
        every = math.ceil(self.total / MOST_LINES)
        if self.done % every and self.done < self.total:
            return
        self.work.log(
            self.done,
            **self.averages.take(),
            lr=self.optimisation.rate(step, self.images),
            images_per_second=self.cost.speed(),
            progress=self.done / self.total,
            **self.cost.system(),
        )
        if self.done <= health.PART * self.total < self.done + every and distributed.rank() == 0:
            health.check_loss(self.work)

    def _save(self) -> None:
        """Checkpoint on rank 0: its state is copied here, and written while training goes on."""
        with self.cost.paused():
            # A finite loss may have had a gradient that is not.
            total = float(self.parallel.total())
            self._check(self.done - 1, {"sum of the parameters": total})
            state = whole(self._snapshot())
            if distributed.rank() == 0:
                self.writer.finish()
                self.work.owned()
                self.writer.start(self.done, state)
        self.saved = self.done
        self.saved_at = time.monotonic()

    def _snapshot(self) -> dict[str, Any]:
        return {
            "format": 1,
            "step": self.done,
            "module": dict(self.module.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "averages": self.averages.state(),
            "cost": self.cost.state(),
        }
