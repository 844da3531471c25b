"""Ranks of one stage: joining them, and collectives that also work alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from methods.engine.work import Layout
from methods.errors import StageError

# As long as the slowest thing that one rank does alone: verifying and reading a checkpoint.
PATIENCE = timedelta(minutes=30)


def setup(layout: Layout) -> torch.device:
    """Join the other ranks (gloo on "cpu", NCCL on "cuda") and return this rank's device.

    Calling it again changes nothing. Reads MASTER_ADDR and MASTER_PORT where world > 1.
    Raises StageError("layout") where the device or the address is missing.
    """
    device = _device(layout)
    if layout.world > 1 and not dist.is_initialized():
        _join(layout, device)
    joined = dist.get_world_size() if dist.is_initialized() else 1
    if joined != layout.world:
        raise StageError("layout", f"{joined} ranks have joined where {layout.world} were planned")
    return device


def _device(layout: Layout) -> torch.device:
    if layout.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise StageError("layout", "the layout asks for CUDA devices and this node shows none")
    # With one visible device per task every local rank uses number 0.
    device = torch.device("cuda", layout.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _join(layout: Layout, device: torch.device) -> None:
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise StageError("layout", f"{layout.world} ranks need {' and '.join(missing)} to meet")
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(
            backend,
            init_method="env://",
            rank=layout.rank,
            world_size=layout.world,
            timeout=PATIENCE,
        )
    except (RuntimeError, ValueError, OSError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise StageError(
            "layout", f"rank {layout.rank} could not meet at {where}: {error}"
        ) from error


def close() -> None:
    """Leave the other ranks."""
    if dist.is_initialized():
        dist.destroy_process_group()


_alone = False


@contextmanager
def alone() -> Iterator[None]:
    """In its body this rank is the only one: collectives wait for nobody."""
    global _alone
    _alone = True
    try:
        yield
    finally:
        _alone = False


def rank() -> int:
    """This rank, 0 when alone."""
    return dist.get_rank() if dist.is_initialized() and not _alone else 0


def world() -> int:
    """Number of ranks, 1 when alone."""
    return dist.get_world_size() if dist.is_initialized() and not _alone else 1


def all_reduce(tensor: Tensor, op: str = "sum") -> Tensor:
    """`tensor` summed ("sum") or maximised ("max") over the ranks, in place, without gradient."""
    if world() > 1:
        dist.all_reduce(tensor, {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}[op])
    return tensor


def broadcast(tensor: Tensor, source: int = 0) -> Tensor:
    """`tensor` of rank `source` on every rank, in place."""
    if world() > 1:
        dist.broadcast(tensor, source)
    return tensor


def broadcast_object(value: Any, source: int = 0) -> Any:
    """`value` of rank `source` on every rank."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, source)
    return box[0]


def gather(tensor: Tensor) -> Tensor:
    """The rows of all ranks in rank order: (rows of this rank, ...) -> (rows of all, ...).

    Ranks may have different numbers of rows. Differentiable: with a loss that every rank computes
    from the gathered rows, the gradients that DDP averages are those of that loss.
    """
    if world() == 1:
        return tensor
    if tensor.dtype == torch.bool:
        return gather(tensor.to(torch.uint8)).to(torch.bool)
    result: Tensor = _Gather.apply(tensor)
    return result


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        counts = _row_counts(tensor)
        most = max(counts)
        padded = tensor.new_zeros((most, *tensor.shape[1:]))
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        context.start, context.rows = sum(counts[: rank()]), counts[rank()]
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].contiguous().clone()
        dist.all_reduce(whole)
        return whole[context.start : context.start + context.rows]


def _row_counts(tensor: Tensor) -> list[int]:
    counts = torch.zeros(world(), dtype=torch.int64, device=tensor.device)
    counts[rank()] = len(tensor)
    dist.all_reduce(counts)
    return [int(count) for count in counts.tolist()]
