"""A step with its blocks compiled: timed in turn with the eager one, its fused kernels counted."""

from __future__ import annotations

import copy
import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from harness.bench.counting import SMALL
from harness.bench.interval import ratio_interval
from harness.bench.projection import Step, line
from methods.engine.counts import Counter
from methods.engine.drop_path import skip_dropped
from methods.engine.execution import Compiler
from methods.errors import InputError


class OutsideCounter(Counter):
    """Counts what is not compiled, and lets compiled graphs be."""

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True


class Scheduled(Exception):
    """Inductor knows its kernels; code for them is not wanted."""


class Backend:
    """Inductor as a backend of torch.compile. Where `counting`, what it would launch is counted and
    the graph runs eagerly, because compiling is what takes the time.

    kernels: of all runs, the nodes of inductor's schedule after fusion; each is one kernel on a
    GPU, or a call of a library. moved: bytes that the kernels outside of matrix products read and
    write, each buffer once each way, as inductor itself estimates them. The dispatcher would see
    the library calls alone.
    """

    def __init__(self) -> None:
        self.counting, self.kernels, self.moved = False, 0, 0

    def __call__(self, graph: Any, inputs: Any, options: Any = None) -> Any:
        from torch._inductor.compile_fx import compile_fx, compile_fx_inner

        inner = self._compile if self.counting else compile_fx_inner
        return compile_fx(graph, inputs, inner_compile=inner, config_patches=options)

    def _compile(self, graph: Any, inputs: Any, **how: Any) -> Any:
        kernels, moved = scheduled(copy.deepcopy(graph), inputs, how)

        def run(arguments: list[Any]) -> Any:
            self.kernels += kernels
            self.moved += moved
            with _disable_current_modes():
                return graph(*arguments)

        run._boxed_call = True  # type: ignore[attr-defined]  # takes a list
        return run


def scheduled(graph: Any, inputs: Any, how: Mapping[str, Any]) -> tuple[int, int]:
    """Kernels that inductor would launch for a graph, and bytes moved outside of its products."""
    from torch._inductor import config, ir
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.scheduler import NopKernelSchedulerNode

    sizes: list[int] = []

    def look(nodes: list[Any]) -> list[Any]:
        for each in nodes:
            # The parts of one call's result, and buffers that others fill, launch nothing.
            if isinstance(each, NopKernelSchedulerNode) or isinstance(each.node, ir.MultiOutput):
                continue
            sizes.append(0 if each.is_extern() else int(each.get_read_write_buffers_sizes()))
        raise Scheduled

    try:
        with config.patch(_post_fusion_custom_pass=look):
            compile_fx_inner(graph, inputs, **how)
    except Exception as error:
        # Inductor gives what is raised in its midst another type.
        if not isinstance(error, Scheduled) and "Scheduled" not in str(error):
            raise
    return len(sizes), sum(sizes)


class Turns:
    """Switches a network between eager and compiled. Raises InputError where it cannot be compiled.

    found: by batch, kernels and bytes outside of products of a step with compiled blocks.
    """

    def __init__(self, network: nn.Module) -> None:
        self.backend = Backend()
        skip_dropped(network)
        self.compiler = Compiler(network, _refuse, self.backend)
        if not self.compiler.on:
            raise InputError("--compile: the network has no blocks that are trained")
        self.compiler.on = False
        self.found: dict[int, tuple[int, int]] = {}

    @contextmanager
    def on(self) -> Iterator[None]:
        """In its body the blocks are the compiled ones."""
        self.compiler.on = True
        try:
            yield
        finally:
            self.compiler.on = False

    def counting(self) -> Iterator[int]:
        """Yields batch sizes, each for the caller to make one update of before it goes on."""
        self.backend.counting, counter = True, OutsideCounter()
        with self.on():
            for batch in SMALL:
                yield batch
                counter.again()
                self.backend.kernels = self.backend.moved = 0
                with counter:
                    yield batch
                seen = counter.counts
                self.found[batch] = (
                    seen.kernels + self.backend.kernels,
                    seen.moved + self.backend.moved,
                )
        self.backend.counting = False
        torch.compiler.reset()

    def step(self, eager: Step) -> Step:
        """The counted step; what is alive was not counted again, and is the eager step's."""
        small, large = (self.found[batch] for batch in SMALL)
        image, step = line(small[1], large[1], SMALL)
        return dataclasses.replace(eager, kernels=large[0], moved_image=image, moved_step=step)


def _refuse(text: str) -> None:
    raise InputError(f"--compile: {text}")


def figures(
    step: Step, eager: Sequence[float], compiled: Sequence[dict[str, float]]
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
        "counts": vars(step),
    }
