"""CLIP's image tower, frozen: one pass gives its tokens and what its class token looked at."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from methods.engine.attention import attend
from methods.engine.checkpoint import save_tensors
from methods.errors import StageError
from methods.parts.augment import mean_std
from methods.teachers.archive import BROKEN
from methods.teachers.folder import read_card
from methods.teachers.frozen import FrozenTeacher, no_autocast
from methods.teachers.half import Copies, dtype_around

CLIP_MEAN, CLIP_STD = mean_std("clip")

KNOWN = {
    "": {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"},
    "vision_cfg": {"layers", "width", "head_width", "patch_size", "image_size"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers"},
}
QUICK = 1.702
"""The factor of QuickGELU's sigmoid."""


class TeacherOutput:
    """What a teacher says about B images of N patches; token 0 is the class token; all float32.

    raw (B, 1+N, W): the last block's output; normalised: after `ln_post`; projected (B, 1+N, P):
    that times `proj`, the space CLIP compares with text. attention (B, N): the last block's
    attention of the class token to each patch, mean over heads; sums to 1 minus its attention to
    itself. `normalised` and `projected` are computed when first asked for.
    """

    def __init__(self, raw: Tensor, attention: Tensor, visual: Any) -> None:
        self.raw, self.attention, self._visual = raw, attention, visual

    @cached_property
    def normalised(self) -> Tensor:
        with torch.no_grad(), no_autocast(self.raw):
            normalised: Tensor = self._visual.ln_post(self.raw)
        return normalised

    @cached_property
    def projected(self) -> Tensor:
        with torch.no_grad(), no_autocast(self.raw):
            projected: Tensor = self.normalised @ self._visual.proj
        return projected


class FrozenClip(FrozenTeacher):
    """open_clip's image tower with read access to its tokens; never trained."""

    def __init__(self, visual: Any, card: dict[str, Any]) -> None:
        super().__init__(card)
        self.visual: Any = fold_quick_gelu(visual.eval().requires_grad_(False))
        self.copies = Copies(self.visual, lambda tower: [tower])
        rows, columns = visual.grid_size
        self.grid: tuple[int, int] = (rows, columns)
        width, projected = visual.proj.shape
        self.widths = {"raw": width, "normalised": width, "projected": projected}

    @classmethod
    def load(cls, folder: Path) -> FrozenClip:
        """The image tower in `folder`, loaded strictly; StageError("needs") when it is broken."""
        card = read_card(folder / "clip.json")
        weights = folder / "clip.safetensors"
        try:
            visual = build_clip(card["model"]).visual
            with safe_open(weights, "pt") as file:
                names = [name for name in file.keys() if name.startswith("visual.")]  # noqa: SIM118
                state = {name.removeprefix("visual."): file.get_tensor(name) for name in names}
            visual.load_state_dict(state, strict=True)
        except BROKEN as error:
            raise StageError("needs", f"{weights}: no CLIP image tower ({error})") from None
        return cls(visual, card)

    @torch.no_grad()
    def forward(self, images: Tensor, statistics: str = "clip") -> TeacherOutput:
        """What the teacher says about images (B, 3, H, W) in [0, 1], under the autocast around.

        `statistics`: CLIP's (its own), or ImageNet's as MILAN does; see `FrozenTeacher.prepared`.
        """
        images = self.prepared(images, statistics, tuple(self.visual.image_size))
        visual = self.copies.get(dtype_around(images), images.device)
        with no_autocast(images):
            raw, attention = tokens_and_attention(visual, images)
        return TeacherOutput(raw.float(), attention, self.visual)


def tokens_and_attention(visual: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """The last block's output (B, 1+N, W) and its class token's attention to patches (B, N).

    Only the class row of that attention matrix is formed, in float32. Equal to open_clip's blocks
    with `need_weights=True` in the last.
    """
    tokens = visual._embeds(images.to(visual.conv1.weight.dtype))
    for block in visual.transformer.resblocks:
        tokens, query, key = run_block(block, tokens)
    logits = query[:, :, :1].float() @ key.float().transpose(2, 3) / query.shape[-1] ** 0.5
    return tokens, logits.softmax(-1)[:, :, 0].mean(1)[:, 1:]


def run_block(block: Any, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (B, 1+N, W) after the block, and its queries and keys (B, heads, 1+N, C).

    Its nn.MultiheadAttention would do the same with more copies.
    """
    attention, heads = block.attn, block.attn.num_heads
    qkv = F.linear(block.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = attend(query, key, value).transpose(1, 2).flatten(2)
    out = tokens + block.ls_1(attention.out_proj(mixed))
    return out + block.ls_2(block.mlp(block.ln_2(out))), query, key


def fold_quick_gelu(visual: Any) -> Any:
    """`visual` with every QuickGELU x sigmoid(1.702 x) as one SiLU: silu(1.702 x) / 1.702.

    The factors move into the matrices around it, which is exact but for rounding; QuickGELU itself
    is three passes over the widest tensors of a block.
    """
    for block in visual.transformer.resblocks:
        if isinstance(block.mlp.gelu, open_clip.transformer.QuickGELU):
            block.mlp.gelu = nn.SiLU()
            for tensor in (block.mlp.c_fc.weight, block.mlp.c_fc.bias):
                tensor.data.mul_(QUICK)
            block.mlp.c_proj.weight.data.div_(QUICK)
    return visual


def build_clip(model: dict[str, Any]) -> open_clip.CLIP:
    """A randomly initialised open_clip.CLIP from the "model" arguments of clip.json.

    KeyError for any other: some would make open_clip fetch a model.
    """
    arguments = dict(model)
    for part, known in KNOWN.items():
        for name in set(arguments[part] if part else arguments) - known:
            raise KeyError(f"{part or 'model'}.{name}")
    vision = open_clip.CLIPVisionCfg(**arguments.pop("vision_cfg"))
    text = open_clip.CLIPTextCfg(**arguments.pop("text_cfg"))
    return open_clip.CLIP(vision_cfg=vision, text_cfg=text, **arguments)


def save_clip(folder: Path, state: dict[str, Tensor], model: dict[str, Any], source: str) -> None:
    """Leaves `state` (the names of open_clip.CLIP) as a teacher folder; the card comes last."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_tensors(tensors, folder / "clip.safetensors")
    card = {"model": model, "mean": CLIP_MEAN, "std": CLIP_STD, "source": source}
    (folder / "clip.json").write_text(json.dumps(card, indent=2) + "\n")
