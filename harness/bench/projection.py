"""A counted step on a GPU that is not here: arithmetic from its rates, to be read as a bound."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class GPU:
    """A GPU's data sheet. flops: bf16 products a second, dense. bandwidth, link: bytes a second of
    its memory, and each way to the GPUs beside it. memory: bytes."""

    name: str
    flops: float
    bandwidth: float
    memory: float
    link: float
    source: str


GPUS = {
    each.name: each
    for each in (
        GPU("A100", 312e12, 2.039e12, 80e9, 300e9, "NVIDIA A100 data sheet, SXM 80 GB"),
        GPU("H100", 989e12, 3.35e12, 80e9, 450e9, "NVIDIA H100 data sheet, SXM 80 GB"),
    )
}

PRODUCT_SHARE = 0.6
"""Of the data sheet's products that transformers' shapes reach (assumed)."""
BANDWIDTH_SHARE = 0.84
"""Of the memory's and the link's bytes a second that kernels reach (assumed)."""
LAUNCH = 5e-6
"""Seconds of the host for each kernel; a step cannot be shorter than its launches (assumed)."""
MEMORY_SHARE = 0.9
"""Of the memory that tensors can fill: the rest is workspaces and fragments (assumed)."""


@dataclass(frozen=True)
class Step:
    """A counted step, linear in the batch: what each image takes, and what any step does.

    flops: of matrix products an image. moved: bytes outside of them. peak_image, peak_step: bytes
    alive at the end of the forward pass; floor: of the update, which no batch is too small for.
    gradients: bytes of the trained parameters' gradients.
    """

    flops: float
    moved_image: float
    moved_step: float
    peak_image: float
    peak_step: float
    floor: float
    kernels: float
    gradients: float

    def peak(self, batch: int) -> float:
        """Bytes of tensors alive at once in a step of `batch` images."""
        return max(self.floor, self.peak_step + self.peak_image * batch)

    def largest_batch(self, memory: float) -> int:
        """The most images whose tensors fit into MEMORY_SHARE of `memory` bytes; 0 where none."""
        room = MEMORY_SHARE * memory - self.peak_step
        if self.peak_image <= 0 or self.floor > MEMORY_SHARE * memory:
            return 0
        return max(0, math.floor(room / self.peak_image))


def line(small: float, large: float, batches: tuple[int, int]) -> tuple[float, float]:
    """(per image, per step) of the line through two batch sizes' figures."""
    slope = (large - small) / (batches[1] - batches[0])
    return slope, small - slope * batches[0]


def project(step: Step, gpu: GPU, batch: int, gpus: int = 1) -> dict[str, float]:
    """Seconds of a step of `batch` images on each of `gpus`, by part, and what bounds it.

    products + traffic, or the launches where those take longer; then the ring all-reduce's
    2 (n - 1) / n x gradients, which hides behind the backward pass (two thirds of the step's time)
    as far as it fits there.
    """
    products = step.flops * batch / (PRODUCT_SHARE * gpu.flops)
    moved = step.moved_image * batch + step.moved_step
    traffic = moved / (BANDWIDTH_SHARE * gpu.bandwidth)
    launches = step.kernels * LAUNCH
    alone = max(products + traffic, launches)
    exchange = 2 * (gpus - 1) / gpus * step.gradients / (BANDWIDTH_SHARE * gpu.link)
    seconds = alone + max(0.0, exchange - alone * 2 / 3)
    return {
        "batch": batch,
        "products": products,
        "traffic": traffic,
        "launches": launches,
        "exchange": exchange,
        "seconds": seconds,
        "images_per_second": gpus * batch / seconds,
        "outside_products": 1 - products / seconds,
        "peak_bytes": step.peak(batch),
    }


def study_hours(step: Step, gpu: GPU, images: float, gpus: int, most: int) -> Mapping[str, Any]:
    """A training on `images` on `gpus`: hours, GPU hours, at the largest power of two that fits."""
    fits = min(most, step.largest_batch(gpu.memory))
    batch = 2 ** int(math.log2(fits)) if fits else 0
    if not batch:
        return {"gpu": gpu.name, "gpus": gpus, "batch": 0, "computed": True}
    found = project(step, gpu, batch, gpus)
    hours = images / found["images_per_second"] / 3600
    return {
        "gpu": gpu.name,
        "gpus": gpus,
        **found,
        "hours": hours,
        "gpu_hours": hours * gpus,
        "computed": True,
    }
