"""MILAN's prompting decoder: visible tokens are a fixed prompt, hidden ones are updated."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from methods.engine.attention import attend
from methods.networks.decoders import FullSequence, select, to_raster
from methods.networks.encoders import Encoded, layer_norm


class CrossAttention(nn.Module):
    """Attention of queries to another sequence; `kv` holds the keys' rows, then the values'."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.fused_attn = heads, True
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """(B, Q, W) from queries (B, Q, W) and context (B, K, W)."""
        query = self.q(queries).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.kv(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = attend(query, key, value, fused=self.fused_attn)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class PromptingBlock(nn.Module):
    """A pre-norm block whose hidden tokens attend to the raw prompt and to their own norms."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = layer_norm(width), layer_norm(width)
        self.attn = CrossAttention(width, heads)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, hidden: Tensor, prompt: Tensor) -> Tensor:
        """Hidden tokens (B, H, W) after the block; the prompt (B, 1+V, W) is not normalised."""
        queries = self.norm1(hidden)
        # Attention does not depend on the order of its keys, so they are not put into raster order.
        context = torch.cat([prompt.to(queries.dtype), queries], dim=1)
        hidden = hidden + self.attn(queries, context)
        out: Tensor = hidden + self.mlp(self.norm2(hidden))
        return out


class PromptingDecoder(FullSequence):
    """See `methods.parts.decoder.Prompting`; source: MILAN `models_milan.py`."""

    def new_block(self, value: Any) -> nn.Module:
        return PromptingBlock(value.width, value.heads)

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        prompt, hidden = self.parts(encoded)
        for block in self.blocks:
            hidden = block(hidden, prompt)
        tokens = to_raster(prompt, hidden, encoded.order)
        return {"tokens": self.pred(self.norm(select(tokens, encoded.mask, self.where)))}
