"""What a piece of training asks of a device, counted by torch's dispatcher on any device."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

# Operations of which a GPU's libraries make one kernel whose cost is its arithmetic.
PRODUCTS = (
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "convolution",
    "convolution_backward",
    "_scaled_dot_product",
    "_flash_attention",
    "_efficient_attention",
)
# Operations that launch nothing: they allocate, look at a number or rename.
NOTHING = ("empty", "new_empty", "_local_scalar_dense", "lift_fresh", "detach", "set_", "_pin")
# Operations that read of their first tensor only what they give, or overwrite it unread.
PICKS = ("gather", "index", "index_select", "embedding", "slice_backward", "select_backward")
OVERWRITES = ("copy_", "fill_", "zero_")


@dataclass
class Counts:
    """kernels: operations that are not views. moved: bytes that those read and write which are no
    matrix products, convolutions or fused attention. peak: most bytes of tensors alive at once,
    gradients and optimiser included, the kernels' own workspaces not. forward: the same before
    the backward pass, which is the peak where activations are the most of it."""

    kernels: int = 0
    moved: int = 0
    peak: int = 0
    forward: int = 0


class Counter(TorchDispatchMode):
    """Fills `counts` while it is active; `hold` tells it what is alive already."""

    def __init__(self) -> None:
        super().__init__()
        self.counts, self.backward = Counts(), False
        self.alive: dict[int, int] = {}
        self.bytes = 0

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Count the storages of `tensors` from now on until they are freed."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self.alive:
                self.alive[key] = storage.nbytes()
                self.bytes += storage.nbytes()
                weakref.finalize(storage, self._freed, key)
        self.counts.peak = max(self.counts.peak, self.bytes)

    def _freed(self, key: int) -> None:
        self.bytes -= self.alive.pop(key, 0)

    def again(self) -> None:
        """Begin the counts of another update; what is alive stays so."""
        self.counts, self.backward = Counts(peak=self.bytes), False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        outputs = list(tensors_of(out))
        inputs = list(tensors_of((args, kwargs or {})))
        if launches(func, inputs, outputs):
            self.counts.kernels += 1
            self.counts.moved += moved(func, inputs, outputs)
        self.hold(outputs)
        self.backward = self.backward or torch._C._current_graph_task_id() != -1
        if not self.backward:
            self.counts.forward = max(self.counts.forward, self.bytes)
        return out


def tensors_of(tree: Any) -> Iterator[Tensor]:
    """Every tensor in nested arguments."""
    return (each for each in tree_iter(tree) if isinstance(each, Tensor))


def name_of(func: Any) -> str:
    """`addmm` of `aten.addmm.default`."""
    return str(func.overloadpacket.__name__)


def launches(func: Any, inputs: list[Tensor], outputs: list[Tensor]) -> bool:
    """Whether an operation does work on the device, and is no view or allocation."""
    if name_of(func).startswith(NOTHING):
        return False
    if func._schema.is_mutable:
        return True
    known = {each.untyped_storage()._cdata for each in inputs}
    return any(each.untyped_storage()._cdata not in known for each in outputs)


def moved(func: Any, inputs: list[Tensor], outputs: list[Tensor]) -> int:
    """Bytes read and written by an operation outside matrix products: each tensor once each way."""
    name = name_of(func)
    if name.startswith(PRODUCTS):
        return 0
    written = sum(map(size, outputs))
    if not outputs and func._schema.is_mutable:  # e.g. fused AdamW: its lists, in and out
        return 2 * sum(map(size, inputs))
    if name in OVERWRITES:
        inputs = inputs[1:]
    if name in PICKS:
        return 2 * written + sum(map(size, inputs[1:]))
    return written + sum(map(size, inputs))


def size(tensor: Tensor) -> int:
    """Bytes of the elements that are really there: an expanded dimension counts once."""
    count = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= length if stride else min(length, 1)
    return count * tensor.element_size()
