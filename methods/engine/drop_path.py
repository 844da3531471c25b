"""Drop path without computing what it drops: a block's branch sees the kept samples alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.models import beit, vision_transformer
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_any_mode_without_ignore_compile_internals

from methods.engine.execution import blocks


def skip_dropped(network: nn.Module) -> None:
    """Let timm's ViT and BEiT blocks in `network` skip the samples that they drop, in place.

    Stochastic depth (arXiv 1603.09382) as timm draws it, sample by sample: outputs and gradients
    are those of `timm.layers.drop_path` but for rounding. It comes before compiling: a block whose
    `forward` has been replaced is left alone.
    """
    for block in blocks(network):
        replaced = "forward" in vars(block)
        if isinstance(block, (vision_transformer.Block, beit.Block)) and not replaced:
            block.forward = partial(_forward, block)  # type: ignore[method-assign]


def _forward(block: Any, tokens: Tensor, **attention: Any) -> Tensor:
    """Tokens (B, N, D) after a block; `attention`: what its attention is given besides them."""

    def attend(rows: Tensor) -> Tensor:
        return scaled(block, 1, block.attn(block.norm1(rows), **attention))

    def transform(rows: Tensor) -> Tensor:
        return scaled(block, 2, block.mlp(block.norm2(rows)))

    return residual(block.drop_path2, residual(block.drop_path1, tokens, attend), transform)


def scaled(block: Any, branch: int, tokens: Tensor) -> Tensor:
    """Tokens after the LayerScale of the block's branch 1 or 2, if it has one."""
    layer = getattr(block, f"ls{branch}", None)
    gamma = getattr(block, f"gamma_{branch}", None)
    if layer is not None:
        tokens = layer(tokens)
    return tokens if gamma is None else gamma * tokens


def residual(drop: nn.Module, tokens: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
    """Tokens (B, N, D) plus `branch` of them, for the samples that `drop` (timm's) keeps.

    All are computed, and what is dropped multiplied by zero, in code that is being compiled, whose
    shapes must not depend on chance; under the dispatcher that counts, so that an update costs
    what it costs at most; and where no sample is kept, since DDP wants a gradient for each weight.
    """
    rate = getattr(drop, "drop_prob", 0.0) if drop.training else 0.0
    if rate == 0.0:
        return tokens + branch(tokens)
    # Drawn on the CPU, or a GPU would have to be waited for before the kept ones can be picked.
    kept = torch.empty(len(tokens), device="cpu").bernoulli_(1 - rate)
    whole = torch.compiler.is_compiling() or is_in_any_mode_without_ignore_compile_internals()
    if whole or not kept.any():
        share = (kept / (1 - rate)).to(tokens.device, tokens.dtype, non_blocking=True)
        return tokens + branch(tokens) * share[:, None, None]
    if kept.all():
        return tokens + branch(tokens) / (1 - rate)
    rows = kept.nonzero().flatten().to(tokens.device, non_blocking=True)
    change = branch(tokens.index_select(0, rows))
    dtype = torch.promote_types(tokens.dtype, change.dtype)
    return tokens.to(dtype).index_add(0, rows, change.to(dtype), alpha=1 / (1 - rate))
