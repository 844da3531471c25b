"""Both kernels of attention give the same, and the one that trains is chosen by device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from methods.engine.attention import attend, choose_kernels
from methods.networks.prompting import PromptingBlock
from methods.parts.encoder import Beit, ViT


@pytest.mark.parametrize("biased", [False, True])
def test_both_kernels_give_the_same_and_the_same_gradients(biased: bool) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(2, 3, rows, 8, requires_grad=True) for rows in (4, 7, 7)]
    if biased:
        tensors.append(torch.randn(3, 4, 7, requires_grad=True))
    outputs = [attend(*tensors, fused=fused) for fused in (True, False)]
    torch.testing.assert_close(*outputs)
    found, expected = (
        torch.autograd.grad(out.square().sum(), tensors, retain_graph=True) for out in outputs
    )
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("encoder", "device", "precision", "fused"),
    [
        (ViT(48, 8, 32, 2, 2), "cpu", "fp32", True),
        (ViT(48, 8, 32, 2, 2), "cpu", "bf16", False),
        (Beit(48, 8, 32, 2, 2), "cpu", "fp32", False),
        (Beit(48, 8, 32, 2, 2), "cuda", "bf16", True),
    ],
)
def test_the_kernel_follows_device_precision_and_bias(
    encoder: Any, device: str, precision: str, fused: bool
) -> None:
    network = torch.nn.Sequential(encoder.build(), PromptingBlock(16, 2))
    choose_kernels(network, torch.device(device), precision)
    chosen = [each.fused_attn for each in network.modules() if hasattr(each, "fused_attn")]
    assert chosen == 3 * [fused]
