"""The count of operations against arithmetic, attention on a CPU included."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from methods.engine.flops import counting


def test_products_and_attention_forward_and_backward() -> None:
    x = torch.randn(2, 3, 16, 8, requires_grad=True)
    weight = torch.randn(8, 8, requires_grad=True)
    with counting() as counter:
        y = F.scaled_dot_product_attention(x @ weight, x, x)
        y.sum().backward()
    product = 2 * (2 * 3 * 16) * 8 * 8
    attention = 2 * (2 * 2 * 3 * 16 * 16 * 8)
    # A product costs two in the backward pass; fused attention computes its scores again.
    assert counter.get_total_flops() == 3 * product + attention + attention * 5 // 2
