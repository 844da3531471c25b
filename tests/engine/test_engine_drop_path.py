"""A residual branch that skips dropped samples equals timm's, which multiplies them by zero."""

from __future__ import annotations

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from methods.engine.counts import Counter
from methods.engine.drop_path import residual

TOKENS = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(0))


class Branch(nn.Linear):
    """Remembers how many samples it was given."""

    def forward(self, tokens: Tensor) -> Tensor:
        self.samples = len(tokens)
        return super().forward(tokens)


def branch() -> Branch:
    torch.manual_seed(1)
    return Branch(8, 8)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_output_and_gradients_are_those_of_timm(rate: float, seed: int) -> None:
    drop, found = DropPath(rate).train(), []
    for skip in (False, True):
        layer, tokens = branch(), TOKENS.clone().requires_grad_()
        torch.manual_seed(seed)
        out = residual(drop, tokens, layer) if skip else tokens + drop(layer(tokens))
        out.square().sum().backward()
        found.append([out, tokens.grad, layer.weight.grad, layer.bias.grad])
    for mine, timm in zip(*reversed(found), strict=True):
        torch.testing.assert_close(mine, timm, rtol=1e-5, atol=1e-5)


def test_only_kept_samples_are_computed_unless_none_is_or_they_are_counted() -> None:
    drop, layer, seen = DropPath(0.7).train(), branch(), set()
    for seed in range(40):
        torch.manual_seed(seed)
        kept = int(torch.empty(6).bernoulli_(0.3).sum())
        torch.manual_seed(seed)
        residual(drop, TOKENS, layer)
        assert layer.samples == (kept or 6)
        seen.add(kept)
        torch.manual_seed(seed)
        with Counter():
            residual(drop, TOKENS, layer)
        assert layer.samples == 6
    assert {0, 1, 2, 3} <= seen


def test_nothing_is_dropped_in_evaluation() -> None:
    layer = branch()
    assert torch.equal(residual(DropPath(0.7).eval(), TOKENS, layer), TOKENS + layer(TOKENS))


@pytest.mark.parametrize("tokens", [torch.bfloat16, torch.float32])
def test_types_are_promoted_as_in_a_sum(tokens: torch.dtype) -> None:
    """Under autocast a branch gives bf16 for tokens in float32, and LayerScale the opposite."""
    other = torch.float32 if tokens is torch.bfloat16 else torch.bfloat16
    for seed in range(4):
        torch.manual_seed(seed)
        out = residual(DropPath(0.5).train(), TOKENS.to(tokens), lambda rows: rows.to(other))
        assert out.dtype == torch.float32
