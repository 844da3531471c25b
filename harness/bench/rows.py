"""One row of the bench: a subject's measured step, its counts, the peer beside it, projections."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from harness import provenance
from harness.bench.compiled import figures as figures_compiled
from harness.bench.interval import ratio_interval
from harness.bench.measure import Clock, Measured, measure, product_rate
from harness.bench.peer import Peer, load_peer
from harness.bench.projection import GPU, Step, project, study_hours
from harness.bench.subject import Subject
from methods.errors import InputError, StageError

MOST = 256
"""Images on a GPU beyond which a larger batch makes nothing faster."""


@dataclass(frozen=True)
class Setting:
    """How to measure. precision None: the recipe's own. threads: of the CPU, 0 for torch's own.

    busy: by the processor's time and on one thread, on a machine that others use. compile: with the
    compiled step in turn.
    """

    device: str
    batch: int
    steps: int
    precision: str | None = None
    peer: str | None = None
    peer_precision: str | None = None
    gpus: tuple[GPU, ...] = ()
    threads: int = 0
    busy: bool = False
    compile: bool = False


def machine(setting: Setting) -> dict[str, Any]:
    """Processor or GPU, cores, memory, versions and date; sets torch's threads.

    Raises InputError where the device is not there.
    """
    if setting.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: this machine shows no CUDA device")
    if setting.busy and setting.device != "cpu":
        raise InputError("--busy: a GPU's time is not the processor's")
    if setting.threads or setting.busy:
        torch.set_num_threads(1 if setting.busy else setting.threads)
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
    device, precision = torch.device(setting.device), setting.peer_precision
    rates, clock = [product_rate(device, busy=setting.busy)], Clock(device, setting.busy)
    peer = load_peer(setting.peer, precision, subject, clock) if setting.peer else None
    between = peer.step if peer else None
    ours = measure(subject, device, setting.steps, between, setting.busy, setting.compile)
    rates.append(product_rate(device, busy=setting.busy))
    rate = statistics.median(rates)
    found = {
        "name": subject.name,
        "encoder": subject.encoder,
        "device": setting.device,
        "precision": subject.optimisation.precision,
        "batch": subject.optimisation.batch,
        "steps": setting.steps,
        "clock": "processor" if setting.busy else "wall",
        **figures(ours.steps, ours.step, subject.optimisation.batch, rate),
        "product_rate": rate,
        "largest_batch": largest(ours.step, subject, device),
        "projections": projections(ours.step, subject, setting.gpus),
    }
    if ours.turns is not None:
        step = ours.turns.step(ours.step)
        found["compiled"] = {
            **figures_compiled(step, ours.seconds, ours.compiled),
            "projections": projections(step, subject, setting.gpus),
        }
    if peer is not None:
        found["peer"] = beside(peer, ours, subject.optimisation.batch, rate)
    return found


def figures(steps: list[dict[str, float]], step: Step, batch: int, rate: float) -> dict[str, Any]:
    """Median seconds by part, images a second, and the share of the matrix-product rate."""
    seconds = statistics.median(sum(parts.values()) for parts in steps)
    return {
        "seconds": {part: statistics.median(each[part] for each in steps) for part in steps[0]},
        "step": seconds,
        "images_per_second": batch / seconds,
        "gflop_per_image": step.flops / 1e9,
        "fraction_of_products": step.flops * batch / rate / seconds,
        "peak_bytes": step.peak(batch),
        "counts": vars(step),
    }


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


def beside(peer: Peer, ours: Measured, batch: int, rate: float) -> dict[str, Any]:
    """The peer's figures, and how often our step fits into its, with an interval."""
    seconds = statistics.median(ours.seconds)
    return {
        "name": peer.name,
        "version": peer.version,
        "precision": peer.precision,
        "repairs": list(peer.repairs),
        **figures(peer.steps, peer.counted, batch, rate),
        "ratio": statistics.median(peer.seconds) / seconds,
        "interval": ratio_interval(peer.seconds, ours.seconds),
        "fraction_of_its_products": peer.counted.flops * batch / rate / seconds,
    }
