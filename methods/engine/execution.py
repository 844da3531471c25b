"""How the blocks of a network are executed: compiled, or computed a second time going back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import is_in_any_mode_without_ignore_compile_internals
from torch.utils.checkpoint import checkpoint

LISTS = ("blocks", "resblocks", "regressor")
"""What the lists of like blocks are called in timm, in open_clip and here."""
MOST_GRAPHS = 256
"""Of one block's code: the blocks' rates of drop path, times the sizes of a micro-batch."""

Forward = Callable[..., Any]


def blocks(network: nn.Module, last: bool = True) -> Iterator[nn.Module]:
    """The blocks of `network` that are trained: encoder's and decoder's, in order.

    last: with the last of each list.
    """
    for name, each in network.named_modules():
        if name.rpartition(".")[2] in LISTS and isinstance(each, (nn.ModuleList, nn.Sequential)):
            found = list(each.children())
            yield from (block for block in found[: None if last else -1] if _trains(block))


def _trains(block: nn.Module) -> bool:
    return any(each.requires_grad for each in block.parameters())


def checkpoint_blocks(network: nn.Module) -> None:
    """Keep of each block's activations its input alone; the backward pass computes the others anew.

    The generators' states are restored for it, so gradients are bit for bit the same. A last block
    of which only some rows are computed (`run_rows`) keeps its activations.
    """
    for block in blocks(network):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


class Compiler:
    """Compiles the blocks of `network` by torch.compile, in place, when they are first called.

    Block by block, so that DDP still exchanges the gradients of one block while the next one's are
    computed. What is between blocks, and frozen networks, are left as they are, and so is a block
    of which only some rows are computed (`run_rows`). Random numbers are the eager step's. `on`
    switches between the two; the first failure to compile switches it off for good, and `alarm` is
    told. `backend`: one of torch.compile's.
    """

    def __init__(
        self, network: nn.Module, alarm: Callable[[str], None], backend: str | Forward = "inductor"
    ) -> None:
        from torch._functorch import config

        # Else the backward pass would be compiled, and fail, in its midst.
        config.force_non_lazy_backward_lowering = True
        self.alarm, found = alarm, list(blocks(network))
        self.on = bool(found)
        for block in found:
            # fullgraph: what cannot be compiled as a whole raises, and is told, instead of running
            # piece by piece unseen.
            compiled = torch.compile(  # type: ignore[call-overload]  # knows no recompile_limit
                block.forward,
                fullgraph=True,
                dynamic=False,
                backend=backend,
                options={"fallback_random": True},
                recompile_limit=MOST_GRAPHS,
            )
            block.forward = partial(self._call, block, block.forward, compiled)

    def _call(
        self, block: nn.Module, eager: Forward, compiled: Forward, *args: Any, **named: Any
    ) -> Any:
        # Evaluations have other sizes, for a few batches that would not repay compiling; what the
        # dispatcher counts (the first update's FLOPs) must pass through it.
        if not (self.on and block.training) or is_in_any_mode_without_ignore_compile_internals():
            return eager(*args, **named)
        from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

        try:
            return compiled(*args, **named)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            self._give_up(error)
        return eager(*args, **named)

    def _give_up(self, error: Exception) -> None:
        lines = [line for line in str(error).splitlines() if line.strip()]
        told = (lines or [type(error).__name__])[0].strip()[:200]
        self.on = False
        self.alarm(f"not compiled, trained without: torch.compile failed: {told}")
