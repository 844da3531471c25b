"""What a training run tells about itself: averages between two log lines, and its cost."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from methods.engine import checkpoint, distributed
from methods.engine.flops import counting
from methods.engine.work import Work


class Averages:
    """Means of scalars since they were last taken; kept in the checkpoint."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Count one value of each metric."""
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """The means, beginning anew."""
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"sums": dict(self.sums), "counts": dict(self.counts)}

    def load(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.sums, self.counts = state["sums"], state["counts"]


class Cost:
    """Seconds, images and memory of a training run over all its attempts.

    Seconds are those of the updates that count: what a killed attempt did after its last
    checkpoint is in `redone_steps`. state/resumes.json counts the attempts apart from the
    checkpoints, because two of them may start from the same one.
    """

    def __init__(self, work: Work, device: torch.device, batch: int) -> None:
        self.work, self.device, self.batch = work, device, batch
        self.before = 0.0
        self.steps = 0
        self.resumed = 0
        self.redone = 0
        self.flops = 0.0  # per image: those of this rank's first update
        self.start()

    def start(self) -> None:
        """The clock runs from here."""
        self.began = self.mark = self.looked = time.perf_counter()
        self.used = time.process_time()
        self.recent = 0

    def count(self) -> None:
        """One update is done."""
        self.steps += 1
        self.recent += 1

    def speed(self) -> float:
        """Images per second over all ranks since the last call."""
        now = time.perf_counter()
        speed = self.recent * self.batch / max(now - self.mark, 1e-9)
        self.mark, self.recent = now, 0
        return round(speed, 3)

    def system(self) -> dict[str, float]:
        """What this process and its own device are busy with, under MLflow's prefix for that.

        Processor time since the last call, 100 for one processor; memory at this moment.
        """
        now, used = time.perf_counter(), time.process_time()
        busy = (used - self.used) / max(now - self.looked, 1e-9)
        self.looked, self.used = now, used
        found = {
            "system/process_cpu_percentage": round(100 * busy, 1),
            "system/process_memory_megabytes": round(_resident_bytes() / 2**20, 1),
        }
        if self.device.type == "cuda":
            held = torch.cuda.memory_reserved(self.device)
            found["system/gpu_memory_megabytes"] = round(held / 2**20, 1)
            # NVML may be missing, and what a driver does not tell is no reason to stop.
            with suppress(Exception):
                found["system/gpu_utilization_percentage"] = torch.cuda.utilization(self.device)
                found["system/gpu_power_watts"] = torch.cuda.power_draw(self.device) / 1000
        return found

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that belongs to the cost but not to the speed of training."""
        began = time.perf_counter()
        yield
        self.mark += time.perf_counter() - began

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Time that other stages of this process have."""
        began = time.perf_counter()
        with self.paused():
            yield
        self.began += time.perf_counter() - began

    @contextmanager
    def counted(self, images: int) -> Iterator[None]:
        """Counts the operations of its body, this rank's part of an update, the first time."""
        if self.flops:
            yield
            return
        with counting() as counter:
            yield
        self.flops = counter.get_total_flops() / max(images, 1)

    def resume(self, done: int) -> None:
        """Count that an earlier attempt had come to update `done` and further, and forget that.

        What is counted is marked until metrics.jsonl is rewound, so that an attempt that is killed
        in between counts nothing twice.
        """
        path = self.work.folder / "state" / "resumes.json"
        if distributed.rank() != 0:
            return
        past, redone = _past(path), self.work.logged_after(done)
        if done or redone:
            past["resumed"] += 1
            past["redone_steps"] += redone if past["marked"] != redone else 0
            _keep(path, {**past, "marked": redone})
        self.work.rewind(done)
        if done or redone:
            _keep(path, {**past, "marked": 0})
        self.resumed, self.redone = past["resumed"], past["redone_steps"]

    def report(self) -> None:
        """Write the cost into `work.report`."""
        seconds = self._seconds()
        images = self.steps * self.batch
        self.work.report.update(
            device=self._device_name(),
            seconds=round(seconds, 3),
            images=images,
            images_per_second=round(images / max(seconds, 1e-9), 3),
            gflops=float(f"{self.flops * images / 1e9:.6g}"),
            steps=self.steps,
            resumed=self.resumed,
            redone_steps=self.redone,
            peak_memory_bytes=self._peak_memory(),
        )

    def _seconds(self) -> float:
        return self.before + time.perf_counter() - self.began

    def _device_name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    def _peak_memory(self) -> int:
        """Bytes: of the device's tensors on CUDA, of this process on the CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return _most_resident_bytes()

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"seconds": self._seconds(), "steps": self.steps, "flops": self.flops}

    def load(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.before, self.steps = state["seconds"], state["steps"]
        self.flops = state["flops"]


def _past(path: Path) -> dict[str, int]:
    """What state/resumes.json counts; from the beginning where the file is missing or damaged."""
    try:
        found = {"marked": 0, **json.loads(path.read_text(encoding="utf-8"))}
        return {name: int(found[name]) for name in ("resumed", "redone_steps", "marked")}
    except (OSError, ValueError, LookupError, TypeError):
        return {"resumed": 0, "redone_steps": 0, "marked": 0}


def _keep(path: Path, past: dict[str, int]) -> None:
    with checkpoint.replacing(path) as aside:
        aside.write_text(json.dumps(past))


def _resident_bytes() -> int:
    """Memory of this process; where the system does not tell, the most that it ever was."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return _most_resident_bytes()
    return pages * resource.getpagesize()


def _most_resident_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
