"""Counting small steps, so that a step of any batch is known without running it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from harness.bench.projection import Step, line
from methods.engine.counts import Counter
from methods.engine.flops import counting

SMALL = (2, 4)
"""Batches that are counted."""


@dataclass(frozen=True)
class Found:
    """What one counted step took; see `methods.engine.counts.Counts`."""

    flops: int
    kernels: int
    moved: int
    peak: int
    forward: int


def counting_updates(networks: Sequence[nn.Module], found: dict[int, Found]) -> Iterator[int]:
    """Yields batch sizes, each for the caller to make one update of before it goes on.

    The first makes the optimiser's state and the like; those that follow are counted into `found`.
    `networks` hold what is on the device already.
    """
    counter = Counter()
    for network in networks:
        counter.hold([*network.parameters(), *network.buffers()])
    with counter:
        yield SMALL[0]
        for batch in SMALL:
            counter.again()
            with counting() as products:
                yield batch
                flops = int(products.get_total_flops())
            counts = counter.counts
            found[batch] = Found(flops, **vars(counts))


def counted_step(found: dict[int, Found], trained: nn.Module) -> Step:
    """The line through the counted steps; `trained`: whose gradients ranks would exchange."""
    small, large = (found[batch] for batch in SMALL)
    moved = line(small.moved, large.moved, SMALL)
    peak = line(small.forward, large.forward, SMALL)
    size = sum(each.numel() for each in trained.parameters() if each.requires_grad)
    return Step(large.flops / SMALL[1], *moved, *peak, small.peak, large.kernels, 4.0 * size)
