"""The encoder that an evaluation works on: pretrained, or initialised from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from evals.positions import resize_bias_table
from methods.engine.work import Work
from methods.errors import InputError, StageError
from methods.networks.encoders import initialised
from methods.parts.augment import mean_std
from methods.parts.encoder import Encoder
from methods.parts.exported import read_exported
from methods.pretrain import milestone_folder

SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"
BLOCK_TABLE = "blocks.{}.attn.relative_position_bias_table"
State = dict[str, Tensor]
Timm = Any
"""A timm ViT or Beit, whose attributes nn.Module does not declare."""


@dataclass(frozen=True)
class Source:
    """A timm model, its arguments and its weights, and where they come from (for messages)."""

    model: str
    arguments: Mapping[str, Any]
    state: State
    origin: str

    @property
    def image(self) -> int:
        """The side of the input that the position tables are made for, in pixels."""
        return int(self.arguments["img_size"])

    @property
    def staged(self) -> bool:
        """Whether it has stages of falling resolution, and no class token: a Swin."""
        return "depths" in self.arguments

    @property
    def depth(self) -> int:
        """Blocks, or stages of a Swin."""
        return len(self.arguments["depths"]) if self.staged else int(self.arguments["depth"])


def source(
    work: Work, encoder: Encoder, seed: int, statistics: str, milestone: float = 1.0
) -> Source:
    """The encoder of the stage that `work` needs, or `encoder` initialised from `seed` without one.

    `milestone`: the share of its pretraining's schedule after which it is wanted. Raises StageError
    "weights" when the files cannot be read, or when the encoder was pretrained on images normalised
    with other statistics than the evaluation's.
    """
    if "encoder" not in work.needs:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            state = initialised(encoder).state_dict()
        return Source(*encoder.timm(), state, "the random initialisation")
    folder = milestone_folder(work.needs["encoder"], milestone)
    try:
        about = read_exported(folder)
    except InputError as error:
        raise StageError("weights", str(error)) from None
    found = Source(about.model, about.arguments, _read(folder), str(folder))
    for name, wanted in zip(("mean", "std"), mean_std(statistics), strict=True):
        if getattr(about, name) not in (None, wanted):
            told = f"{name} {getattr(about, name)}, but the evaluation's is {statistics!r}"
            raise StageError("weights", f"{folder / 'encoder.json'}: {told}")
    check_fit(_shapes(found), found.state, found.origin)
    return found


def _shapes(found: Source) -> State:
    """The tensors that the description asks for, without memory: it may ask for any size."""
    try:
        with torch.device("meta"):
            model: Timm = timm.create_model(found.model, **found.arguments)
    except Exception as error:  # timm's models refuse their arguments in many ways
        told = " ".join(str(error).split())
        raise StageError("weights", f"{found.origin}: no such encoder: {told}") from None
    return dict(model.state_dict())


def check_views(found: Source, task: Any) -> None:
    """StageError "data" where the task's two transforms do not make what the encoder takes."""
    for name in ("augmentation", "validation"):
        views = getattr(task, name, None)
        if views is not None and views.size != found.image:
            raise StageError(
                "data", f"{name}.size is {views.size}, but the encoder takes {found.image} pixels"
            )
        if views is not None and views.statistics != task.validation.statistics:
            raise StageError("data", f"{name}.statistics is not that of validation")


def _read(folder: Path) -> State:
    path = folder / "encoder.safetensors"
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise StageError("weights", f"{path}: cannot be read: {error}") from None


def build_frozen(found: Source, device: torch.device) -> Timm:
    """The encoder as it was exported, with its final norm, in eval mode and without gradients."""
    model = timm.create_model(found.model, **{**found.arguments, "num_classes": 0})
    load_strictly(model, _without(found.state, "head."), found.origin)
    return model.to(device).eval().requires_grad_(False)


def build_trainable(
    found: Source, seed: int, *, classes: int, drop_path: float, image: int | None = None
) -> Timm:
    """The encoder as fine-tuning and segmentation change it: mean pooling, `fc_norm`, a new head.

    The norm of pretraining is not transferred, `fc_norm` starts at (1, 0) (MAE, MILAN, BEiT); a
    Swin, which has no `fc_norm`, keeps its norm, and its windows at any size (SimMIM). A bias table
    that all blocks share becomes one table a block, as BEiT does. `image` resizes the position
    tables to another input side in pixels.
    """
    arguments = {**found.arguments, "num_classes": classes, "global_pool": "avg"}
    arguments["drop_path_rate"] = drop_path
    state = _without(found.state, "head.", "fc_norm.", *(() if found.staged else ("norm.",)))
    if arguments.get("use_shared_rel_pos_bias"):
        arguments |= {"use_shared_rel_pos_bias": False, "use_rel_pos_bias": True}
        state = _one_table_a_block(state, int(arguments["depth"]))
    if image is not None and image != found.image:
        arguments["img_size"] = image
        if not found.staged:
            state = _resized(state, image // int(arguments["patch_size"]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Timm = timm.create_model(found.model, **arguments)
    load_strictly(model, state, found.origin)
    return model


def _without(state: State, *prefixes: str) -> State:
    return {name: value for name, value in state.items() if not name.startswith(prefixes)}


def _one_table_a_block(state: State, depth: int) -> State:
    state = dict(state)
    shared = state.pop(SHARED_TABLE, None)
    if shared is None:
        return state
    return state | {BLOCK_TABLE.format(block): shared.clone() for block in range(depth)}


def _resized(state: State, grid: int) -> State:
    state = dict(state)
    for name, value in state.items():
        if name == "pos_embed":
            state[name] = resample_abs_pos_embed(value, [grid, grid])
        elif name.endswith("relative_position_bias_table"):
            state[name] = resize_bias_table(value, grid)
    return state


def load_strictly(model: Timm, state: Mapping[str, Tensor], origin: str) -> None:
    """Load `state` into `model`, whose head and `fc_norm` alone may keep their initialisation.

    Raises StageError "weights" as `check_fit` does.
    """
    check_fit(model.state_dict(), state, origin)
    model.load_state_dict(dict(state), strict=False)


def check_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], origin: str) -> None:
    """That `state` fits a network whose own state is `own`, its head and `fc_norm` apart.

    Raises StageError "weights" with the first names that are missing, unexpected or misshapen.
    """
    wanted = {name for name in own if not name.startswith(("head.", "fc_norm."))}
    problems = {
        "missing": sorted(wanted - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "of another shape": [
            f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
            for name in sorted(own.keys() & state.keys())
            if state[name].shape != own[name].shape
        ],
    }
    report = [
        f"{len(names)} {problem}: {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}"
        for problem, names in problems.items()
        if names
    ]
    if report:
        raise StageError("weights", f"{origin} does not fit the encoder: {'; '.join(report)}")


def features(
    model: Timm, images: Tensor, pooling: Literal["class", "mean"], layer: int | None
) -> Tensor:
    """Features (B,D) float32 of normalised images (B,3,H,W): class token, or mean of the patches.

    `layer` None takes the tokens after the final norm; a number the raw output of that block (of a
    Swin: stage). A Swin has no class token: StageError "layout".
    """
    if not hasattr(model, "cls_token"):
        return _mean_of_maps(model, images, pooling, layer)
    if layer is None:
        tokens = model.forward_features(images)
        prefix = model.num_prefix_tokens
        return (tokens[:, 0] if pooling == "class" else tokens[:, prefix:].mean(1)).float()
    [(patches, classes)] = model.forward_intermediates(
        images,
        indices=[layer],
        return_prefix_tokens=True,
        norm=False,
        stop_early=True,
        output_fmt="NLC",
        intermediates_only=True,
    )
    return (classes[:, 0] if pooling == "class" else patches.mean(1)).float()


def _mean_of_maps(model: Timm, images: Tensor, pooling: str, layer: int | None) -> Tensor:
    """The mean of a Swin's last map (B,H,W,D) after the norm, or of the stage `layer`'s."""
    if pooling == "class":
        raise StageError("layout", "pooling must be 'mean': the encoder has no class token")
    if layer is None:
        tokens: Tensor = model.forward_features(images)
        return tokens.mean((1, 2)).float()
    [maps] = model.forward_intermediates(
        images, indices=[layer], norm=False, stop_early=True, intermediates_only=True
    )
    return maps.mean((2, 3)).float()
