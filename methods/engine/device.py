"""What a computation needs of its device: data, precision, random numbers, memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from methods.engine.work import Layout
from methods.errors import StageError

Micro = dict[str, Any]

TYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def to_device(micro: Micro, device: torch.device) -> Micro:
    """The micro-batch with its tensors on `device`; pinned ones are copied while others compute."""
    if device.type == "cpu":
        return micro
    return {
        name: item.to(device, non_blocking=True) if isinstance(item, Tensor) else item
        for name, item in micro.items()
    }


def rows(micro: Micro) -> int:
    """How many images a micro-batch holds."""
    return next(len(item) for item in micro.values() if isinstance(item, Tensor))


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Mixed precision "bf16" or "fp16"; nothing for "fp32"."""
    dtype = TYPES[precision]
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def seed_generators(*key: int) -> None:
    """Seed torch's generators of the CPU and of the current CUDA device by the numbers of `key`."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    # torch.manual_seed costs a millisecond, and memory, per call while CUDA has not been touched.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


@contextmanager
def memory_errors(layout: Layout) -> Iterator[None]:
    """Turn running out of memory into StageError("memory")."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        lines = str(error).splitlines() or ["out of memory"]
        full = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not full and "can't allocate memory" not in lines[0]:
            raise
        limit = layout.device_batch
        raise StageError(
            "memory", f"{lines[0]} (device_batch is {limit}; a smaller one changes no number)"
        ) from error
