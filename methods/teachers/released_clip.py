"""OpenAI's CLIP file -> teacher folder: names, sizes, QuickGELU, position embedding, a check."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.errors import StageError
from methods.teachers.archive import BROKEN, find_weights, read_weights
from methods.teachers.clip_network import FrozenClip, build_clip, save_clip

if TYPE_CHECKING:
    from methods.engine.work import Work
    from methods.teachers.clip import ReleasedClip


def convert(task: ReleasedClip, work: Work) -> dict[str, float]:
    """Rank 0 reads the file and writes the folder; no metrics."""
    if work.layout.rank != 0:
        return {}
    path = find_weights(work.data, task)
    state = {name: tensor.float() for name, tensor in read_weights(path).items()}
    try:
        model = model_of(state)
        if task.image:
            size = task.image, model["vision_cfg"]["patch_size"]
            embedding = resize_positions(state["visual.positional_embedding"], *size)
            state["visual.positional_embedding"] = embedding
            model["vision_cfg"]["image_size"] = task.image
        clip = build_clip(model)
        clip.load_state_dict(_with_text(state, clip.state_dict()), strict=True)
    except BROKEN as error:
        raise StageError("weights", f"{path}: not OpenAI's CLIP with a ViT ({error})") from None
    save_clip(work.folder, clip.state_dict(), model, task.weights)
    check_features(FrozenClip.load(work.folder), str(path))
    return {}


def model_of(state: dict[str, Tensor]) -> dict[str, Any]:
    """Arguments of open_clip.CLIP that fit OpenAI's tensors; heads are 64 wide in both towers.

    `quick_gelu` is always set: OpenAI trained with x * sigmoid(1.702 x), and exact GELU loads just
    as well and gives wrong features. A file without text tower gets the smallest one.
    """
    kernel = state["visual.conv1.weight"]
    grid = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
    vision = {
        "layers": _depth(state, "visual.transformer.resblocks."),
        "width": kernel.shape[0],
        "head_width": 64,
        "patch_size": kernel.shape[-1],
        "image_size": kernel.shape[-1] * grid,
    }
    text = {"context_length": 1, "vocab_size": 1, "width": 1, "heads": 1, "layers": 1}
    if "token_embedding.weight" in state:
        vocabulary, width = state["token_embedding.weight"].shape
        text = {
            "context_length": len(state["positional_embedding"]),
            "vocab_size": vocabulary,
            "width": width,
            "heads": width // 64,
            "layers": _depth(state, "transformer.resblocks."),
        }
    embedding = state["visual.proj"].shape[1]
    return {"embed_dim": embedding, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}


def _depth(state: dict[str, Tensor], prefix: str) -> int:
    names = [name.removeprefix(prefix) for name in state if name.startswith(prefix)]
    depth = 1 + max(int(name.split(".")[0]) for name in names)
    if depth > len(names):  # or a name alone could ask for any number of blocks
        raise KeyError(f"{depth} blocks in {len(names)} tensors")
    return depth


def _with_text(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` without the archive's constants; a placeholder text tower where it has none."""
    ignored = {"input_resolution", "context_length", "vocab_size", "attn_mask"}
    state = {name: tensor for name, tensor in state.items() if name not in ignored}
    if "token_embedding.weight" in state:
        return state
    return {n: t for n, t in wanted.items() if not n.startswith("visual.")} | state


def resize_positions(embedding: Tensor, image: int, patch: int) -> Tensor:
    """Position embedding (1 + n*n, W) for images of `image` pixels; the class row stays."""
    if image % patch:
        raise StageError("weights", f"image = {image} is not a multiple of the patch size {patch}")
    old, new = round((len(embedding) - 1) ** 0.5), image // patch
    if old == new:
        return embedding
    squares = embedding[1:].T.reshape(1, -1, old, old)
    squares = F.interpolate(squares, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([embedding[:1], squares.flatten(2)[0].T])


def check_features(teacher: FrozenClip, where: str) -> None:
    """StageError("weights") unless noise and a gradient give finite, different features."""
    height, width = teacher.visual.image_size
    noise = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    ramp = torch.linspace(0, 1, width).expand(1, 3, height, width)
    output = teacher(torch.cat([noise, ramp]))
    tokens = F.normalize(output.projected, dim=-1)
    same = bool((tokens[0, 0] * tokens[1, 0]).sum() > 0.999)
    if same or not bool(tokens.isfinite().all()) or not bool((output.attention > 0).all()):
        raise StageError("weights", f"{where}: the features of two test images are no features")
