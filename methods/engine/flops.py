"""Floating-point operations of a piece of training, counted by torch's dispatcher."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten


def _forward(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _backward(
    gradient: Any, query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any
) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


# torch's counter knows attention on a GPU only.
ON_CPU = {
    aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Counts matrix products, convolutions and attention, forward and backward, in its body.

    `get_total_flops()` of what it yields is the count; a multiply-add is two operations.
    """
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
        yield counter
