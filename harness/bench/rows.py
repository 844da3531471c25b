"""One row of the bench: a subject's measured step, its counts, the peer beside it, projections."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from harness import provenance
from harness.bench.interval import ratio_interval
from harness.bench.measure import PARTS, Measured, measure, product_rate
from harness.bench.peer import Peer, load_peer
from harness.bench.projection import GPU, Step, line, project, study_hours
from harness.bench.subject import Subject
from methods.errors import InputError, StageError

MOST = 256
"""Images on a GPU beyond which a larger batch makes nothing faster."""


@dataclass(frozen=True)
class Setting:
    """How to measure. precision None: the recipe's own. threads: of the CPU, 0 for torch's own."""

    device: str
    batch: int
    steps: int
    precision: str | None = None
    peer: str | None = None
    peer_precision: str | None = None
    gpus: tuple[GPU, ...] = ()
    threads: int = 0


def machine(setting: Setting) -> dict[str, Any]:
    """Processor or GPU, cores, memory, versions and date; sets torch's threads.

    Raises InputError where the device is not there.
    """
    if setting.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine shows no CUDA device")
    if setting.threads:
        torch.set_num_threads(setting.threads)
    return {
        "processor": provenance.device(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gb": round(memory(torch.device(setting.device)) / 1e9, 1),
        "versions": provenance.versions(),
        "commit": provenance.commit() + ("+" if provenance.dirty() else ""),
        "date": time.strftime("%Y-%m-%d"),
    }


def memory(device: torch.device) -> int:
    """Bytes of the device's memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def row(subject: Subject, setting: Setting) -> dict[str, Any]:
    """Measure `subject`; seconds are medians over the timed steps."""
    device = torch.device(setting.device)
    rates = [product_rate(device)]
    peer = (
        load_peer(setting.peer, setting.peer_precision, subject, device) if setting.peer else None
    )
    ours = measure(subject, device, setting.steps, peer.step if peer else None)
    rates.append(product_rate(device))
    rate = statistics.median(rates)
    step = counted_step(subject, ours, device)
    found = {
        "name": subject.name,
        "encoder": subject.encoder,
        "device": setting.device,
        "precision": subject.optimisation.precision,
        "batch": subject.optimisation.batch,
        "steps": setting.steps,
        **figures(ours, subject.optimisation.batch, rate),
        "product_rate": rate,
        "counts": vars(step),
        "largest_batch": largest(step, subject, device),
        "projections": projections(step, subject, setting.gpus),
    }
    if peer is not None:
        found["peer"] = beside(peer, ours, subject, rate)
    return found


def figures(measured: Measured, batch: int, rate: float) -> dict[str, Any]:
    """Seconds by part, images a second, FLOPs, and the share of the matrix-product rate."""
    seconds = statistics.median(measured.seconds)
    return {
        "seconds": {
            part: statistics.median(step[part] for step in measured.steps) for part in PARTS
        },
        "step": seconds,
        "images_per_second": batch / seconds,
        "gflop_per_image": measured.flops / batch / 1e9,
        "fraction_of_products": measured.flops / rate / seconds,
        "peak_bytes": measured.peak,
        "kernels": measured.kernels,
        "moved_bytes": measured.moved,
    }


def counted_step(subject: Subject, ours: Measured, device: torch.device) -> Step:
    """The counts as a line over the batch, from a second, smaller or larger batch."""
    batch = subject.optimisation.batch
    other = batch // 2 or 2
    small, large = sorted((batch, other))
    found = {batch: ours, other: measure(subject.with_batch(other), device, 0)}
    moved, peak = (
        line(getattr(found[small], name), getattr(found[large], name), (small, large))
        for name in ("moved", "peak")
    )
    module = subject.build().module
    trained = sum(each.numel() for each in module.parameters() if each.requires_grad)
    return Step(ours.flops / batch, *moved, *peak, ours.kernels, 4.0 * trained)


def largest(step: Step, subject: Subject, device: torch.device) -> dict[str, Any]:
    """The largest batch of one device: on CUDA tried, on a CPU extrapolated from two sizes."""
    fits = step.largest_batch(memory(device))
    if device.type != "cuda":
        return {"batch": fits, "how": "computed from two batch sizes and the memory"}
    while fits and not runs(subject.with_batch(fits), device):
        fits = int(0.9 * fits)
    return {"batch": fits, "how": "tried, from the computed size downwards by tenths"}


def runs(subject: Subject, device: torch.device) -> bool:
    """Whether two updates of the subject's batch fit into the memory."""
    try:
        measure(subject, device, 0)
    except StageError as error:
        if error.reason != "memory":
            raise
        return False
    return True


def projections(step: Step, subject: Subject, gpus: tuple[GPU, ...]) -> list[dict[str, Any]]:
    """For each GPU: a step at the largest power of two that fits, and training on eight of them."""
    found = []
    for gpu in gpus:
        eight = dict(study_hours(step, gpu, subject.images, 8, MOST))
        if eight["batch"]:
            eight["alone"] = project(step, gpu, eight["batch"])
        found.append(eight)
    return found


def beside(peer: Peer, ours: Measured, subject: Subject, rate: float) -> dict[str, Any]:
    """The peer's medians, and how often our step fits into its, with an interval."""
    batch = subject.optimisation.batch
    theirs = figures_of_peer(peer, batch, rate)
    ratio = statistics.median(peer.seconds) / statistics.median(ours.seconds)
    return {
        "name": peer.name,
        "version": peer.version,
        "precision": peer.precision,
        "repairs": list(peer.repairs),
        **theirs,
        "ratio": ratio,
        "interval": ratio_interval(peer.seconds, ours.seconds),
        "fraction_of_its_products": peer.counted.flops / rate / statistics.median(ours.seconds),
    }


def figures_of_peer(peer: Peer, batch: int, rate: float) -> dict[str, Any]:
    """As `figures`, for a step whose parts are forward with teacher, backward and optimiser."""
    seconds = statistics.median(peer.seconds)
    names = peer.steps[0].keys() if peer.steps else ()
    return {
        "seconds": {name: statistics.median(each[name] for each in peer.steps) for name in names},
        "step": seconds,
        "images_per_second": batch / seconds,
        "gflop_per_image": peer.counted.flops / batch / 1e9,
        "fraction_of_products": peer.counted.flops / rate / seconds,
        "peak_bytes": peer.counted.peak,
        "kernels": peer.counted.kernels,
        "moved_bytes": peer.counted.moved,
    }
