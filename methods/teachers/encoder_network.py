"""A plain timm encoder as a teacher: its tokens, and what its class token looked at."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from methods.errors import InputError, StageError
from methods.networks.checkpoints import import_encoder
from methods.parts.exported import read_exported
from methods.teachers.archive import BROKEN, find_weights
from methods.teachers.frozen import FrozenTeacher, no_autocast

if TYPE_CHECKING:
    from methods.engine.work import Work
    from methods.teachers.encoder import ReleasedEncoder


class EncoderOutput:
    """What an encoder says about B images of N patches; token 0 is the class token; all float32.

    raw (B, 1+N, W): the last block's output; normalised: after the final norm; projected: the same,
    for want of a projection. attention (B, N): the last block's attention of the class token to
    each patch, mean over heads, computed when first asked for.
    """

    def __init__(self, before: Tensor | None, raw: Tensor, model: Any) -> None:
        self.raw = raw.float()
        self._before, self._model = before, model

    @cached_property
    def normalised(self) -> Tensor:
        with torch.no_grad(), no_autocast(self.raw):
            normalised: Tensor = self._model.norm(self.raw)
        return normalised

    @property
    def projected(self) -> Tensor:
        return self.normalised

    @cached_property
    def attention(self) -> Tensor:
        if self._before is None:
            raise StageError("teacher", "attention is asked of a teacher of two blocks or more")
        with torch.no_grad(), no_autocast(self.raw):
            shared = getattr(self._model, "rel_pos_bias", None)
            bias = shared() if shared is not None else None
            return class_attention(self._model.blocks[-1], self._before.float(), bias)


def class_attention(block: Any, tokens: Tensor, bias: Tensor | None) -> Tensor:
    """Attention (B, N) of the class token to the patches in a block of timm's ViT or Beit.

    tokens: (B, 1+N, W) that enter the block. bias: of the logits, (heads, 1+N, 1+N).
    """
    attention = block.attn
    offset = attention.qkv.bias
    if offset is None:  # BEiT's keys have none
        offset = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    qkv = F.linear(block.norm1(tokens), attention.qkv.weight, offset)
    query, key, _ = qkv.unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    logits = query[:, :, :1] @ key.transpose(2, 3) * attention.scale
    if bias is not None:
        logits = logits + bias[:, :1]
    return logits.softmax(-1)[:, :, 0].mean(1)[:, 1:]


class FrozenEncoder(FrozenTeacher):
    """The encoder that a stage left, with the interface of `FrozenClip`; never trained."""

    def __init__(self, model: Any, card: dict[str, Any]) -> None:
        super().__init__(card)
        self.model: Any = model.eval().requires_grad_(False)
        rows, columns = model.patch_embed.grid_size
        self.grid: tuple[int, int] = (rows, columns)
        self.widths = dict.fromkeys(("raw", "normalised", "projected"), int(model.embed_dim))

    @classmethod
    def load(cls, folder: Path) -> FrozenEncoder:
        """The encoder in `folder`, loaded strictly; StageError("needs") when it is broken.

        StageError("teacher") where it has no class token.
        """
        try:
            about = read_exported(folder)
        except InputError as error:
            raise StageError("needs", str(error)) from None
        if about.kind not in ("ViT", "Beit"):
            told = f"{folder}: a {about.kind} cannot teach: it has no class token"
            raise StageError("teacher", told)
        weights = folder / "encoder.safetensors"
        try:
            model = timm.create_model(about.model, **about.arguments)
            model.load_state_dict(load_file(weights), strict=True)
            return cls(model, {"mean": about.mean, "std": about.std})
        except BROKEN as error:
            raise StageError("needs", f"{weights}: no encoder ({error})") from None

    @torch.no_grad()
    def forward(self, images: Tensor, statistics: str = "own") -> EncoderOutput:
        """What the teacher says about images (B, 3, H, W) in [0, 1], under the autocast around.

        `statistics`: its "own", or those named; see `FrozenTeacher.prepared`.
        """
        images = self.prepared(images, statistics, tuple(self.model.patch_embed.img_size))
        depth = len(self.model.blocks)
        found = self.model.forward_intermediates(
            images,
            indices=list(range(max(0, depth - 2), depth)),
            return_prefix_tokens=True,
            norm=False,
            output_fmt="NLC",
            intermediates_only=True,
        )
        tokens = [torch.cat([prefix, patches], dim=1) for patches, prefix in found]
        return EncoderOutput(tokens[-2] if depth > 1 else None, tokens[-1], self.model)


def convert(task: ReleasedEncoder, work: Work) -> dict[str, float]:
    """Rank 0 reads the file, writes the folder and tries what it wrote."""
    if work.layout.rank != 0:
        return {}
    path = find_weights(work.data, task)
    found = import_encoder(path, task.encoder, task.statistics, work.folder)
    check_features(FrozenEncoder.load(work.folder), str(path))
    return {"tensors": float(found.loaded)}


def check_features(teacher: FrozenEncoder, where: str) -> None:
    """StageError("weights") unless noise and a gradient give finite, different features."""
    height, width = teacher.model.patch_embed.img_size
    noise = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    ramp = torch.linspace(0, 1, width).expand(1, 3, height, width)
    tokens = F.normalize(teacher(torch.cat([noise, ramp])).normalised, dim=-1)
    if not bool(tokens.isfinite().all()) or torch.allclose(tokens[0], tokens[1], atol=1e-3):
        raise StageError("weights", f"{where}: the features of two test images are no features")
