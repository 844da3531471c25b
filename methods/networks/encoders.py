"""The students: timm models driven through their public modules, with hidden patches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models import beit, vision_transformer
from torch import Tensor, nn

from methods.engine.attention import attend
from methods.engine.drop_path import scaled
from methods.networks.positions import sine_cosine
from methods.parts.encoder import Beit, Encoder, ViT
from methods.parts.swin import Swin

layer_norm: Any = partial(nn.LayerNorm, eps=1e-6)


@dataclass
class Encoded:
    """What an encoder gives a decoder.

    tokens: (B, 1+V, D) of the last block before the final norm, the class first; V is N, or the
    number of visible patches where hidden ones are dropped. early: the same after an earlier block,
    where asked for. mask: (B, N) bool, True = hidden. order: (B, N) patch positions, visible ones
    first, each part in raster order. norm: the encoder's final norm. bias: of the relative
    positions (heads, 1+N, 1+N), or None. hidden_only: tokens are those of the class and the hidden
    patches, (B, 1+H, D), because no loss reads the others.
    """

    tokens: Tensor
    early: Tensor | None
    mask: Tensor
    order: Tensor
    norm: nn.Module
    bias: Tensor | None = None
    hidden_only: bool = False

    @property
    def visible(self) -> int:
        """Visible patches V of each image, where hidden ones are dropped."""
        return self.tokens.shape[1] - 1


class Student(nn.Module):
    """Base of the students. `model` is the plain timm model that gets exported.

    embedding: width of the patches that a mask token of zeros takes the place of; None without one.
    block: timm's class of the family's blocks, where the decoder may want some more.
    """

    block: Any
    model: Any
    mask_token: Any
    heads: int
    layer_scale: float | None = None

    def __init__(self, value: ViT | Beit | Swin, embedding: int | None) -> None:
        super().__init__()
        self.width, self.depth, self.grid = value.width, value.depth, value.grid
        self.drop_path = value.drop_path
        name, arguments = value.timm()
        self.model = timm.create_model(name, drop_path_rate=value.drop_path, **arguments)
        token = None if embedding is None else nn.Parameter(torch.zeros(1, 1, embedding))
        self.register_parameter("mask_token", token)

    def forward(
        self,
        images: Tensor,
        mask: Tensor,
        early_layer: int | None = None,
        hidden_only: bool = False,
    ) -> Encoded:
        """Encode normalised images (B, 3, H, W) without the patches where mask (B, N) is True.

        `early_layer` k asks for the tokens after the k-th block, counted from 1. `hidden_only` lets
        the last block compute the class and the hidden patches, equally many in each image, alone.
        """
        order = mask.to(torch.uint8).argsort(dim=1, stable=True)
        tokens, bias = self.embed(images, mask, order), self.position_bias()
        early = None
        *blocks, last = self.model.blocks
        for number, block in enumerate(blocks, start=1):
            tokens = run_block(block, tokens, bias)
            if number == early_layer:
                early = tokens
        if hidden_only:
            rows = class_and_hidden(order, mask)
            tokens = run_rows(last, tokens, partial(take, positions=rows), pick_bias(bias, rows))
        else:
            tokens = run_block(last, tokens, bias)
        return Encoded(tokens, early, mask, order, self.model.norm, bias, hidden_only)

    def embed(self, images: Tensor, mask: Tensor, order: Tensor) -> Tensor:
        """Tokens (B, 1+V, D) that enter the first block."""
        raise NotImplementedError

    def position_bias(self) -> Tensor | None:
        """Bias of the attention logits, (heads, 1+N, 1+N), if the family has one."""
        return None

    def new_block(self, drop_path: float) -> nn.Module:
        """One more block of the family and size, with PyTorch's default initialisation."""
        block: nn.Module = self.block(
            self.width,
            self.heads,
            qkv_bias=True,
            init_values=self.layer_scale,
            drop_path=drop_path,
            norm_layer=layer_norm,
        )
        return block

    def initialise(self, module: nn.Module) -> None:
        """Initialise linear layers, convolutions and norms in `module` as the family does."""
        raise NotImplementedError

    def hide(self, patches: Tensor, mask: Tensor) -> Tensor:
        """Patches (B, N, D) with the mask token where mask (B, N) is True."""
        return torch.where(mask[..., None], self.mask_token.to(patches.dtype), patches)


class StudentViT(Student):
    """ViT with fixed sine-cosine positions; hidden patches are dropped or replaced."""

    block = vision_transformer.Block

    def __init__(self, value: ViT) -> None:
        super().__init__(value, value.width if value.hidden == "token" else None)
        self.heads, self.layer_scale = value.heads, value.layer_scale
        self.drops = value.hidden == "drop"
        xavier(self.model)
        with torch.no_grad():
            for token in (self.model.cls_token, self.mask_token):
                if token is not None:
                    nn.init.normal_(token, std=0.02)
            self.model.pos_embed.copy_(sine_cosine(value.width, value.grid))
        self.model.pos_embed.requires_grad_(False)

    def embed(self, images: Tensor, mask: Tensor, order: Tensor) -> Tensor:
        positions = self.model.pos_embed
        if self.drops:
            visible = order[:, : order.shape[1] - hidden_count(mask)]
            where = take(positions[:, 1:].expand(len(images), -1, -1), visible)
            patches = embed_some(self.model.patch_embed.proj, images, visible) + where
        else:
            patches = self.hide(self.model.patch_embed(images), mask) + positions[:, 1:]
        first = (self.model.cls_token + positions[:, :1]).expand(len(patches), -1, -1)
        return torch.cat([first.to(patches.dtype), patches], dim=1)

    def initialise(self, module: nn.Module) -> None:
        xavier(module)


class StudentBeit(Student):
    """BEiT: mask tokens, no absolute positions, one relative position bias for all blocks."""

    block = beit.Block

    def __init__(self, value: Beit) -> None:
        super().__init__(value, value.width)
        self.heads, self.layer_scale = value.heads, value.layer_scale
        self.deviation = value.deviation
        truncated(self.model, self.deviation)
        scale_by_depth(self.model.blocks)
        for token in (self.model.cls_token, self.mask_token):
            truncated_normal(token, self.deviation)

    def embed(self, images: Tensor, mask: Tensor, order: Tensor) -> Tensor:
        patches = self.hide(self.model.patch_embed(images), mask)
        first = self.model.cls_token.expand(len(patches), -1, -1)
        return torch.cat([first.to(patches.dtype), patches], dim=1)

    def position_bias(self) -> Tensor | None:
        bias: Tensor = self.model.rel_pos_bias()
        return bias

    def initialise(self, module: nn.Module) -> None:
        truncated(module, self.deviation)


def initialised(encoder: Encoder) -> Any:
    """The plain timm model as pretraining would start from it, every parameter trainable."""
    model = encoder.build().model
    return model.requires_grad_(True)


def run_block(block: nn.Module, tokens: Tensor, bias: Tensor | None) -> Tensor:
    """Tokens (B, 1+V, D) after a block, with BEiT's bias of the attention logits if any."""
    out: Tensor = block(tokens) if bias is None else block(tokens, shared_rel_pos_bias=bias)
    return out


def run_rows(
    block: Any, tokens: Tensor, pick: Callable[[Tensor], Tensor], bias: Tensor | None = None
) -> Tensor:
    """`run_block` for the rows (B, R, D) that `pick` takes of (B, 1+V, D); all are attended to.

    bias: the picked rows' (B, heads, R, 1+V). For timm's ViT and BEiT blocks.
    """
    mixed = _attention_of_rows(block.attn, block.norm1(tokens), pick, bias)
    rows = pick(tokens) + block.drop_path1(scaled(block, 1, mixed))
    out: Tensor = rows + block.drop_path2(scaled(block, 2, block.mlp(block.norm2(rows))))
    return out


def _attention_of_rows(
    attention: Any, tokens: Tensor, pick: Callable[[Tensor], Tensor], bias: Tensor | None
) -> Tensor:
    weight, offset = attention.qkv.weight, attention.qkv.bias
    if offset is None:  # BEiT's keys have none
        offset = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    width, heads = attention.proj.in_features, attention.num_heads
    query = F.linear(pick(tokens), weight[:width], offset[:width])
    keys = F.linear(tokens, weight[width:], offset[width:])
    key, value = keys.unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    query = query.unflatten(-1, (heads, -1)).transpose(1, 2)
    mixed = attend(query, key, value, bias, attention.fused_attn)
    out: Tensor = attention.proj(mixed.transpose(1, 2).flatten(2))
    return out


def hidden_count(mask: Tensor) -> int:
    """How many patches mask (B, N) hides in each image, where it is an equal count."""
    return int(mask[0].sum())


def class_and_hidden(order: Tensor, mask: Tensor) -> Tensor:
    """Positions (B, 1+H) among (B, 1+N) tokens of the class and the hidden patches."""
    hidden = order[:, order.shape[1] - hidden_count(mask) :] + 1
    return torch.cat([torch.zeros_like(hidden[:, :1]), hidden], dim=1)


def pick_bias(bias: Tensor | None, rows: Tensor) -> Tensor | None:
    """The rows (B, R) of a bias (heads, 1+N, 1+N), as (B, heads, R, 1+N)."""
    if bias is None:
        return None
    picked = bias.transpose(0, 1).index_select(0, rows.flatten())
    return picked.unflatten(0, rows.shape).transpose(1, 2)


def embed_some(projection: nn.Conv2d, images: Tensor, positions: Tensor) -> Tensor:
    """Embeddings (B, K, D) of the patches of images (B, 3, H, W) at positions (B, K) alone."""
    side = projection.kernel_size[0]
    patches = images.unfold(2, side, side).unfold(3, side, side)  # (B, 3, rows, columns, P, P)
    patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    return F.linear(take(patches, positions), projection.weight.flatten(1), projection.bias)


def take(tokens: Tensor, positions: Tensor) -> Tensor:
    """The rows of tokens (B, N, D) at positions (B, K), as (B, K, D)."""
    return tokens.gather(1, positions[..., None].expand(-1, -1, tokens.shape[-1]))


def xavier(module: nn.Module) -> None:
    """MAE: Xavier-uniform matrices, zero biases, norms 1 and 0; in `module` and all it holds.

    A convolution's kernel counts as the matrix it flattens to; its bias keeps PyTorch's default.
    """
    for each in module.modules():
        if isinstance(each, nn.Linear):
            nn.init.xavier_uniform_(each.weight)
            if each.bias is not None:
                nn.init.zeros_(each.bias)
        elif isinstance(each, nn.Conv2d):
            nn.init.xavier_uniform_(each.weight.view(each.weight.shape[0], -1))
        elif isinstance(each, nn.LayerNorm):
            nn.init.ones_(each.weight)
            nn.init.zeros_(each.bias)


def truncated(module: nn.Module, deviation: float) -> None:
    """BEiT: truncated-normal matrices and kernels, zero biases, norms 1 and 0."""
    for each in module.modules():
        if isinstance(each, (nn.Linear, nn.Conv2d)):
            truncated_normal(each.weight, deviation)
            if each.bias is not None:
                nn.init.zeros_(each.bias)
        elif isinstance(each, nn.LayerNorm):
            nn.init.ones_(each.weight)
            nn.init.zeros_(each.bias)


def truncated_normal(weight: Tensor, deviation: float = 0.02) -> None:
    """Normal cut at one deviation (BEiT): of 0.02 there is 0.0108 left."""
    nn.init.trunc_normal_(weight, std=deviation, a=-deviation, b=deviation)


def scale_by_depth(blocks: nn.Module, first: int = 1) -> None:
    """Divide the last matrix of both branches of block i by sqrt(2 i), counted from `first`."""
    with torch.no_grad():
        for number, block in enumerate(blocks.children(), start=first):
            for weight in (block.attn.proj.weight, block.mlp.fc2.weight):  # type: ignore[union-attr]
                weight.div_(math.sqrt(2.0 * number))  # type: ignore[operator]
