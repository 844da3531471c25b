"""How ranks share a module's training: one alone, each a replica (DDP), each a part (FSDP)."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from methods.engine import distributed
from methods.engine.execution import blocks
from methods.engine.work import Layout


class Alone:
    """The only rank. `model` is what to call for the losses; gradients end in `module`."""

    execution = ""

    def __init__(self, module: nn.Module) -> None:
        self.module = self.model = module

    def gather(self) -> None:
        """Make whole what is outside of blocks, for who calls parts of the module before it."""

    def syncing(self, last: bool) -> AbstractContextManager[Any]:
        """For one backward pass: gradients meet in the update's last."""
        return nullcontext()

    def total(self) -> Tensor:
        """The sum of all parameters, a float64 scalar."""
        items = [item.detach() for item in self.module.parameters()]
        total = torch.zeros((), dtype=torch.float64, device=items[0].device)
        return sum((_local(item).sum(dtype=torch.float64) for item in items), total)

    def part(self, state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """This rank's part of a whole state of `optimizer`."""
        return state

    def restore(self) -> None:
        """Make `module` again what it was, with the weights that it has now."""


class Replicas(Alone):
    """A replica on each rank, whose gradients are averaged (DistributedDataParallel)."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        super().__init__(module)
        # No static_graph: its first update must synchronise, which accumulation does not.
        self.replica = DistributedDataParallel(
            module,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )
        self.model = self.replica

    def syncing(self, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last else self.replica.no_sync()


class Shards(Alone):
    """Shards `module` over all ranks, in place, until `restore`.

    A block's parameters are whole on a rank while the block is computed, those outside of blocks
    during an update. The last block of a list counts as outside, since `run_rows` calls its parts
    in place of it. Ranks must hold equal parameters. PyTorch's `fully_shard` (FSDP2).
    """

    execution = ", sharded"

    @staticmethod
    def fit(module: nn.Module) -> bool:
        """Whether there are blocks to shard by, and no scalar (CLIP's), which FSDP refuses."""
        scalars = any(item.ndim == 0 for item in module.parameters())
        return not scalars and any(blocks(module, last=False))

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        super().__init__(module)
        self.device = device
        self.plain = copy.deepcopy(module).to("cpu")
        for item in module.parameters():
            item.data = item.data.contiguous()  # FSDP takes no other, such as channels last
        mesh = init_device_mesh(device.type, (distributed.world(),))
        for block in blocks(module, last=False):
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
        # What is called under FSDP's eyes first has to be the root.
        module.gather = lambda: None  # type: ignore[assignment]
        register_fsdp_forward_method(module, "gather")

    def gather(self) -> None:
        self.module.gather()  # type: ignore[operator]

    def syncing(self, last: bool) -> AbstractContextManager[Any]:
        assert isinstance(self.module, FSDPModule)
        self.module.set_requires_gradient_sync(last)
        return nullcontext()

    def total(self) -> Tensor:
        return distributed.all_reduce(super().total())

    def part(self, state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        items = [item for group in optimizer.param_groups for item in group["params"]]
        parts = {number: _part(own, items[number]) for number, own in state["state"].items()}
        return {**state, "state": parts}

    def restore(self) -> None:
        self.plain.load_state_dict(whole(self.module.state_dict(), everywhere=True))
        pairs = zip(list(self.module.modules()), self.plain.to(self.device).modules(), strict=True)
        for mine, plain in pairs:
            mine.__class__, mine.__dict__ = plain.__class__, plain.__dict__


def join(module: nn.Module, layout: Layout, device: torch.device) -> Alone:
    """Join the ranks' modules, which are equal, as the layout wants it."""
    if distributed.world() == 1:
        return Alone(module)
    if layout.shard and Shards.fit(module):
        return Shards(module, device)
    return Replicas(module, device)


def _part(state: dict[str, Any], item: Tensor) -> dict[str, Any]:
    """What an optimiser knows of one parameter, cut as the parameter is."""
    assert isinstance(item, DTensor)
    cut = {
        name: distribute_tensor(
            value.to(item.device), item.device_mesh, item.placements, src_data_rank=None
        )
        for name, value in state.items()
        if isinstance(value, Tensor) and value.shape == item.shape
    }
    return {**state, **cut}


def _local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that is sharded, else the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(state: Any, everywhere: bool = False) -> Any:
    """`state` with its sharded tensors whole, on the CPU; elsewhere than on rank 0 they are None.

    Every rank has to call it, which returns what it was given where nothing is sharded.
    everywhere: whole on each rank.
    """
    if isinstance(state, DTensor):
        tensor = state.full_tensor().detach()
        return tensor.to("cpu") if everywhere or distributed.rank() == 0 else None
    if isinstance(state, dict):
        return {name: whole(value, everywhere) for name, value in state.items()}
    return state
