"""Linear, transformer and patch-aggregation decoders."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from timm.models import vision_transformer
from torch import Tensor, nn

from methods.networks.encoders import (
    Encoded,
    Student,
    class_and_hidden,
    layer_norm,
    pick_bias,
    run_block,
    run_rows,
    scale_by_depth,
    take,
)
from methods.networks.positions import sine_cosine
from methods.parts.decoder import Output, PatchAggregation, Transformer, Where


def select(tokens: Tensor, mask: Tensor, where: Where) -> Tensor:
    """The rows that `where` names, of tokens (B, 1+N, C) or (B, N, C) (codes: without C).

    "all" keeps everything and "patches" all but the class; "hidden" and "visible" give (rows, C) in
    raster order by mask (B, N), True = hidden. "image" expects (B, C) and keeps it.
    """
    if where in ("all", "image"):
        return tokens
    patches = tokens[:, tokens.shape[1] - mask.shape[1] :]
    if where == "patches":
        return patches
    return patches[mask if where == "hidden" else ~mask]


def read(encoded: Encoded, where: Where) -> Tensor:
    """`select` from the encoder's tokens, which may be those of the hidden patches only."""
    if encoded.hidden_only:
        return encoded.tokens[:, 1:].flatten(0, 1)
    return select(encoded.tokens, encoded.mask, where)


class LinearHeadDecoder(nn.Module):
    """One linear layer on the encoder's normalised tokens."""

    early_layer: int | None = None

    def __init__(self, student: Student, output: Output) -> None:
        super().__init__()
        self.where, self.parts = output.where, output.parts
        self.hidden_only = output.where == "hidden"
        self.head = nn.Linear(student.width, output.width)
        student.initialise(self.head)

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        # Norm and head act on single tokens, so rows that no loss reads are dropped before them.
        tokens = self.head(encoded.norm(read(encoded, self.where)))
        return {"tokens": tokens if self.parts == 1 else tokens.unflatten(-1, (self.parts, -1))}


class PatchAggregationDecoder(nn.Module):
    """BEiT v2's two heads; see `methods.parts.decoder.PatchAggregation`."""

    def __init__(
        self, value: PatchAggregation, student: Student, outputs: Mapping[str, Output]
    ) -> None:
        super().__init__()
        self.early_layer = value.early_layer
        self.outputs = dict(outputs)
        tokens, aggregated = outputs["tokens"], outputs["aggregated"]
        if value.shared_head and tokens.width != aggregated.width:
            raise ValueError("a shared head needs two targets of one width")
        self.hidden_only = all(each.where == "hidden" for each in outputs.values())
        first, last = value.early_layer, value.early_layer + value.depth
        rates = torch.linspace(0, student.drop_path, max(student.depth, last), device="cpu")
        self.blocks = nn.ModuleList(student.new_block(float(r)) for r in rates[first:last])
        # These blocks keep PyTorch's initialisation: the source adds them after its own is done.
        scale_by_depth(self.blocks, first=first + 1)
        self.head = nn.Linear(student.width, tokens.width)
        student.initialise(self.head)
        self.own: nn.Sequential | None = None
        if not value.shared_head:
            head = nn.Linear(student.width, aggregated.width)
            self.own = nn.Sequential(layer_norm(student.width), head)
            student.initialise(self.own)

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        assert encoded.early is not None
        mixed = torch.cat([encoded.tokens[:, :1], encoded.early[:, 1:]], dim=1)
        mixed = self._aggregate(encoded, mixed)
        aggregated = self.own(mixed) if self.own else self.head(encoded.norm(mixed))
        last = read(encoded, self.outputs["tokens"].where)
        return {"tokens": self.head(encoded.norm(last)), "aggregated": aggregated}

    def _aggregate(self, encoded: Encoded, mixed: Tensor) -> Tensor:
        """The rows that the loss reads of (B, 1+N, D) after the blocks."""
        *blocks, last = self.blocks
        for block in blocks:
            mixed = run_block(block, mixed, encoded.bias)
        if not encoded.hidden_only:
            mixed = run_block(last, mixed, encoded.bias)
            return select(mixed, encoded.mask, self.outputs["aggregated"].where)
        rows = class_and_hidden(encoded.order, encoded.mask)[:, 1:]
        bias = pick_bias(encoded.bias, rows)
        return run_rows(last, mixed, partial(take, positions=rows), bias).flatten(0, 1)


class FullSequence(nn.Module):
    """What MAE's and MILAN's decoders share: all N positions restored from the visible tokens."""

    early_layer: int | None = None

    def __init__(self, value: Transformer, student: Student, output: Output) -> None:
        super().__init__()
        self.where = output.where
        self.embed = nn.Linear(student.width, value.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, value.width))
        self.register_buffer("pos_embed", sine_cosine(value.width, student.grid))
        self.blocks = nn.ModuleList(self.new_block(value) for _ in range(value.depth))
        self.norm = layer_norm(value.width)
        self.pred = nn.Linear(value.width, output.width)
        student.initialise(self)
        nn.init.normal_(self.mask_token, std=0.02)

    def new_block(self, value: Any) -> nn.Module:
        """One block of the decoder that `value` describes."""
        raise NotImplementedError

    def parts(self, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """Class and visible tokens (B, 1+V, W) and hidden ones (B, N-V, W), with positions."""
        seen = self.embed(encoded.norm(encoded.tokens))
        positions: Tensor = self.pos_embed.expand(len(seen), -1, -1)  # type: ignore[operator]
        patches, split = take(positions[:, 1:], encoded.order), encoded.visible
        seen = seen + torch.cat([positions[:, :1], patches[:, :split]], dim=1)
        return seen, self.mask_token + patches[:, split:]


def to_raster(seen: Tensor, hidden: Tensor, order: Tensor) -> Tensor:
    """(B, 1+N, W) in raster order from (B, 1+V, W) and (B, N-V, W) that `order` (B, N) sorted."""
    patches = torch.cat([seen[:, 1:], hidden.to(seen.dtype)], dim=1)
    return torch.cat([seen[:, :1], take(patches, order.argsort(dim=1))], dim=1)


class TransformerDecoder(FullSequence):
    """Self-attention over the class, visible and mask tokens (MAE)."""

    def new_block(self, value: Any) -> nn.Module:
        return vision_transformer.Block(
            value.width, value.heads, qkv_bias=True, norm_layer=layer_norm
        )

    def forward(self, encoded: Encoded) -> dict[str, Tensor]:
        # Attention does not depend on the order of the tokens, which have their positions by now,
        # so the hidden ones stay behind the visible ones.
        seen, hidden = self.parts(encoded)
        split = seen.shape[1]
        tokens = torch.cat([seen, hidden.to(seen.dtype)], dim=1)
        if self.where == "hidden":
            *blocks, last = self.blocks
            for block in blocks:
                tokens = block(tokens)
            rows = run_rows(last, tokens, lambda each: each[:, split:]).flatten(0, 1)
        else:
            for block in self.blocks:
                tokens = block(tokens)
            tokens = to_raster(tokens[:, :split], tokens[:, split:], encoded.order)
            rows = select(tokens, encoded.mask, self.where)
        return {"tokens": self.pred(self.norm(rows))}
