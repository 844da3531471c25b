"""Which kernel computes attention: torch's fused one, or plain products where that is faster."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attend(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, fused: bool = True
) -> Tensor:
    """softmax(query key^T / sqrt(C) + bias) value, (B, heads, Q, C).

    query (B, heads, Q, C); key and value (B, heads, K, C); bias broadcasts to (B, heads, Q, K).
    """
    if fused:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if bias is not None:
        logits = logits + bias
    return logits.softmax(-1) @ value


def choose_kernels(module: nn.Module, device: torch.device, precision: str) -> None:
    """Set `fused_attn` of every attention in `module` (timm's name for it) for training there.

    On a CPU the fused kernel's backward pass takes 2 to 3 times as long as plain products in half
    precision, and it has none for a learnt bias of the logits (BEiT). Elsewhere it is the faster
    one, and keeps no matrix of logits.
    """
    biased = any("relative_position_bias_table" in name for name, _ in module.named_parameters())
    fused = device.type != "cpu" or (precision == "fp32" and not biased)
    for each in module.modules():
        if hasattr(each, "fused_attn"):
            setattr(each, "fused_attn", fused)  # noqa: B010
