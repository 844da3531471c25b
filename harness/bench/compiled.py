"""A step with its blocks compiled: in turn with the eager one, its fused kernels counted."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from harness.bench.interval import ratio_interval
from harness.bench.projection import Step
from methods.engine.counts import Counter, Counts
from methods.engine.execution import Compiler
from methods.errors import InputError


class OutsideCounter(Counter):
    """Counts what is not compiled, and compiled graphs' matrix products, while they may run."""

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True


@dataclass
class Fused:
    """A torch.compile backend: inductor, counting the kernels that it generated when they run.

    kernels: nodes of its schedule after fusion, each one kernel on a GPU. moved: bytes that they
    read and write, each buffer once each way, as inductor itself counts them. The dispatcher sees
    neither. Matrix products and other library calls are no such nodes, and it does see those.
    """

    kernels: int = 0
    moved: int = 0

    def __call__(self, graph: Any, inputs: Any, options: Any = None) -> Any:
        from torch._inductor.compile_fx import compile_fx

        return compile_fx(graph, inputs, inner_compile=self._compile, config_patches=options)

    def _compile(self, graph: Any, inputs: Any, **how: Any) -> Any:
        from torch._inductor import config
        from torch._inductor.compile_fx import compile_fx_inner

        sizes: list[int] = []

        def schedule(nodes: list[Any]) -> list[Any]:
            own = [each for each in nodes if not each.is_extern()]
            sizes.extend(int(each.get_read_write_buffers_sizes()) for each in own)
            return nodes

        with config.patch(_post_fusion_custom_pass=schedule):
            compiled = compile_fx_inner(graph, inputs, **how)

        def run(arguments: Any) -> Any:
            self.kernels += len(sizes)
            self.moved += sum(sizes)
            return compiled(arguments)

        run._boxed_call = True  # type: ignore[attr-defined]  # it may free its arguments
        return run


class Turns:
    """Switches a network between eager and compiled. Raises InputError where it cannot be compiled.

    eager, compiled: counts of one update of one size each. seconds: the wall time of compiling.
    """

    def __init__(self, network: nn.Module) -> None:
        self.fused = Fused()
        self.compiler = Compiler(network, _refuse, self.fused)
        if not self.compiler.on:
            raise InputError("--compile: the network has no blocks that are trained")
        self.compiler.on = False
        self.eager, self.compiled, self.seconds = Counts(), Counts(), 0.0

    @contextmanager
    def on(self) -> Iterator[None]:
        """In its body the blocks are the compiled ones."""
        self.compiler.on = True
        try:
            yield
        finally:
            self.compiler.on = False

    def counting(self) -> Iterator[None]:
        """Yields three times, each for the caller to make one update before it goes on."""
        counter = OutsideCounter()
        with counter:
            yield
        self.eager = counter.counts
        with self.on():
            began = time.perf_counter()
            yield
            self.seconds = time.perf_counter() - began
            counter.again()
            before = dataclasses.replace(self.fused)
            with counter:
                yield
        self.compiled = counter.counts
        self.compiled.kernels += self.fused.kernels - before.kernels
        self.compiled.moved += self.fused.moved - before.moved

    def step(self, eager: Step, batch: int) -> Step:
        """The counted eager step less what compiling takes away from one of `batch` images.

        What is alive at the end of the forward pass was not counted again, and is the eager step's.
        """
        moved = (self.eager.moved - self.compiled.moved) / batch
        kernels = self.eager.kernels - self.compiled.kernels
        return dataclasses.replace(
            eager, moved_image=eager.moved_image - moved, kernels=eager.kernels - kernels
        )


def _refuse(text: str) -> None:
    raise InputError(f"--compile: {text}")


def figures(
    turns: Turns, eager: Sequence[float], compiled: Sequence[dict[str, float]]
) -> dict[str, Any]:
    """What a row tells of the compiled step; `ratio`: how often it fits into the eager one."""
    seconds = [sum(parts.values()) for parts in compiled]
    return {
        "seconds": {
            part: statistics.median(each[part] for each in compiled) for part in compiled[0]
        },
        "step": statistics.median(seconds),
        "ratio": statistics.median(eager) / statistics.median(seconds),
        "interval": ratio_interval(eager, seconds),
        "compile_seconds": turns.seconds,
        "kernels": {"eager": turns.eager.kernels, "compiled": turns.compiled.kernels},
        "moved": {"eager": turns.eager.moved, "compiled": turns.compiled.moved},
    }
