"""Names of a Swin's tensors: SimMIM's and Swin's own code, mmpretrain and timm."""

from __future__ import annotations

import re

from torch import Tensor

from methods.teachers.archive import unwrapped

State = dict[str, Tensor]

# mmpretrain's names, as patterns of its and of timm's; its last norm is that of the fourth stage.
MMPRETRAIN = (
    ("patch_embed.projection.", "patch_embed.proj."),
    ("stages.", "layers."),
    (".attn.w_msa.", ".attn."),
    (".ffn.layers.0.0.", ".mlp.fc1."),
    (".ffn.layers.1.", ".mlp.fc2."),
)
# What is no tensor of the encoder, or is computed from its sizes.
BESIDES = re.compile(
    r"mask_token|decoder|head\.|neck\.|data_preprocessor|.*(relative_position_index|attn_mask)$"
)


def from_released(raw: State) -> tuple[State, set[str]]:
    """The encoder's tensors under timm's names, and the names in the file that they had.

    `raw`: of SimMIM's checkpoint ("encoder."), of mmpretrain's ("backbone.") or of timm's model.
    """
    ours = {n: theirs for n, theirs in unwrapped(raw).items() if not BESIDES.match(n)}
    state = {name: raw[theirs] for name, theirs in ours.items()}
    if any(name.startswith("stages.") for name in ours):
        state = {_from_mmpretrain(name): _folded(name, item) for name, item in state.items()}
    if any(name.startswith("layers.0.downsample.") for name in state):
        state = {_moved(name, 1): item for name, item in state.items()}
    return state, set(ours.values())


def to_mmpretrain(state: State) -> State:
    """timm's tensors under mmpretrain's names."""
    found = {}
    for name, item in state.items():
        theirs = _moved(name, -1)
        for pattern, timms in MMPRETRAIN:
            theirs = theirs.replace(timms, pattern, 1)
        theirs = re.sub(r"^norm\.", "norm3.", theirs)
        found[f"backbone.{theirs}"] = _unfolded(name, item).contiguous()
    return found


def _from_mmpretrain(name: str) -> str:
    for pattern, timms in MMPRETRAIN:
        name = name.replace(pattern, timms, 1)
    return re.sub(r"^norm3\.", "norm.", name)


def _moved(name: str, stages: int) -> str:
    """A merging's name: timm has it at the start of a stage, the others at the end of the last."""

    def other(match: re.Match[str]) -> str:
        return f"layers.{int(match[1]) + stages}.downsample."

    return re.sub(r"^layers\.(\d+)\.downsample\.", other, name)


def _unfolded(name: str, item: Tensor) -> Tensor:
    """A merging's weights for channels that come before the four places, as mmpretrain has them.

    The places are (0,0), (1,0), (0,1), (1,1) in timm and (0,0), (0,1), (1,0), (1,1) there.
    """
    if ".downsample." not in name:
        return item
    places = item.unflatten(-1, (2, 2, -1)).transpose(-3, -2)
    return places.movedim(-1, -3).flatten(-3)


def _folded(name: str, item: Tensor) -> Tensor:
    """The inverse of `_unfolded`."""
    if ".downsample." not in name:
        return item
    return item.unflatten(-1, (-1, 2, 2)).movedim(-3, -1).transpose(-3, -2).flatten(-3)
