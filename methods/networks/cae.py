"""CAE's latent regressor and decoder, and the latents that it aligns with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from methods.engine.attention import attend
from methods.networks.encoders import Encoded, Student, layer_norm, take, truncated_normal
from methods.networks.positions import sine_cosine
from methods.networks.targets import Inputs, TargetNetwork
from methods.parts.decoder import Output
from methods.parts.encoder import Encoder

if TYPE_CHECKING:
    from methods.cae import LatentRegressor


class RegressorBlock(nn.Module):
    """Queries attend to keys and values that have norms of their own; positions are no values.

    The keys have no bias: the softmax would not see it.
    """

    def __init__(self, width: int, heads: int, layer_scale: float, drop_path: float) -> None:
        super().__init__()
        self.heads, self.fused_attn = heads, True
        self.norm_q, self.norm_k, self.norm_v, self.norm_mlp = (layer_norm(width) for _ in range(4))
        self.q, self.v = nn.Linear(width, width), nn.Linear(width, width)
        self.k = nn.Linear(width, width, bias=False)
        self.proj = nn.Linear(width, width)
        self.mlp = Mlp(width, 4 * width)
        self.gamma_1 = nn.Parameter(torch.full((width,), layer_scale))
        self.gamma_2 = nn.Parameter(torch.full((width,), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, hidden: Tensor, seen: Tensor, where: Tensor, seen_where: Tensor) -> Tensor:
        """Hidden tokens (B, H, D) after the block; positions where (B, H, D), (B, V, D)."""
        context = torch.cat([seen, hidden], dim=1)
        context_where = torch.cat([seen_where, where], dim=1)
        query = self._heads(self.q(self.norm_q(hidden + where)))
        key = self._heads(self.k(self.norm_k(context + context_where)))
        value = self._heads(self.v(self.norm_v(context)))
        mixed = attend(query, key, value, fused=self.fused_attn).transpose(1, 2).flatten(2)
        hidden = self.norm_mlp(hidden + self.drop_path(self.gamma_1 * self.proj(mixed)))
        out: Tensor = hidden + self.drop_path(self.gamma_2 * self.mlp(hidden))
        return out

    def _heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class LatentRegressorDecoder(nn.Module):
    """See `methods.cae.LatentRegressor`; source: lxtGH/CAE `modeling_cae_helper.py`."""

    early_layer: int | None = None

    def __init__(
        self, value: LatentRegressor, student: Student, outputs: Mapping[str, Output]
    ) -> None:
        super().__init__()
        width, scale = student.width, student.layer_scale or 1.0
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("pos_embed", sine_cosine(width, student.grid))
        rates = torch.linspace(0, student.drop_path, value.depth, device="cpu").tolist()
        self.regressor = nn.ModuleList(
            RegressorBlock(width, student.heads, scale, rate) for rate in rates
        )
        rates = torch.linspace(0, student.drop_path, value.decoder_depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(student.new_block(rate) for rate in rates)
        self.norm_latents, self.norm = layer_norm(width), layer_norm(width)
        self.head = nn.Linear(width, outputs["tokens"].width)
        student.initialise(self)
        truncated_normal(self.mask_token)

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        seen = encoded.norm(encoded.tokens)[:, 1:]
        positions: Tensor = self.pos_embed[:, 1:]  # type: ignore[index]
        positions = take(positions.expand(len(seen), -1, -1), encoded.order)
        seen_where, where = positions[:, : encoded.visible], positions[:, encoded.visible :]
        hidden = self.mask_token.expand_as(where)
        for block in self.regressor:
            hidden = block(hidden, seen, where, seen_where)
        latents = self.norm_latents(hidden)
        hidden = latents + where
        for block in self.blocks:
            hidden = block(hidden)
        logits = self.head(self.norm(hidden))
        return {"latents": latents.flatten(0, 1), "tokens": logits.flatten(0, 1)}


class OwnLatentTarget(TargetNetwork):
    """See `methods.cae.OwnLatents`: (B, N, D), zero where a patch is visible."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.width: int = encoder.width  # type: ignore[attr-defined]

    def one(self, inputs: Inputs, student: Any) -> Tensor:
        assert inputs.mask is not None
        encoded = student.encoder(inputs.image, ~inputs.mask)
        latents = encoded.norm(encoded.tokens)[:, 1:].float()
        full = latents.new_zeros(*inputs.mask.shape, self.width)
        full[inputs.mask] = latents.flatten(0, 1)
        return full
