"""Names of encoders' tensors: official code, mmpretrain and timm."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import Tensor

from methods.engine.checkpoint import replacing, save_tensors
from methods.errors import StageError
from methods.networks.export import write_encoder
from methods.networks.swin_names import from_released, to_mmpretrain
from methods.parts.encoder import Beit, Encoder, ViT
from methods.parts.swin import Swin
from methods.released import Imported
from methods.teachers.archive import BROKEN, read_weights, unwrapped

State = dict[str, Tensor]

TABLE = "rel_pos_bias.relative_position_bias_table"
# mmpretrain's names below "backbone.", as patterns of its and of timm's names.
MMPRETRAIN = (
    ("patch_embed.projection.", "patch_embed.proj."),
    ("layers.", "blocks."),
    (".ln1.", ".norm1."),
    (".ln2.", ".norm2."),
    (".ffn.layers.0.0.", ".mlp.fc1."),
    (".ffn.layers.1.", ".mlp.fc2."),
)
# What pretraining checkpoints hold besides the encoder.
BESIDES = re.compile(
    r"mask_token|lm_head\.|cls_pt_|decoder|head\.|neck\.|teacher|.*relative_position_index$"
)


def import_encoder(path: Path, encoder: Encoder, statistics: str, folder: Path | None) -> Imported:
    """See `methods.released.import_encoder`."""
    if not isinstance(encoder, (ViT, Beit, Swin)):
        raise StageError("weights", f"{path}: no layout of a {encoder.describe()} is known")
    with torch.serialization.safe_globals([argparse.Namespace]):  # official files keep their flags
        raw = read_weights(path)
    if isinstance(encoder, Swin):
        return _import_swin(path, encoder, raw, statistics, folder)
    names = timm_names(raw)
    state = {name: raw[theirs] for name, theirs in names.items()}
    try:
        beit = isinstance(encoder, Beit)
        state = with_shared_table(state, path) if beit else with_fused_bias(state)
    except BROKEN as error:
        raise StageError("weights", f"{path}: biases that do not fit: {error}") from None
    found = sized(encoder, state, path)
    _check_fit(state, found, path)
    _check_sizes(found, encoder, path)
    if found != encoder:
        state = interpolated(state, encoder)
    if folder is not None:
        write_encoder(state, encoder, statistics, folder)
    left_out = tuple(sorted(raw.keys() - set(names.values())))
    return Imported(len(state), left_out, int(getattr(found, "image", 0)))


def _import_swin(
    path: Path, encoder: Swin, raw: State, statistics: str, folder: Path | None
) -> Imported:
    """Its windows must be the encoder's; its tensors do not depend on the size of the image."""
    try:
        state, theirs = from_released(raw)
    except BROKEN as error:
        raise StageError("weights", f"{path}: no Swin from pretraining: {error}") from None
    _check_fit(state, encoder, path)
    if folder is not None:
        write_encoder(state, encoder, statistics, folder)
    return Imported(len(state), tuple(sorted(raw.keys() - theirs)), encoder.image)


def _check_sizes(found: Encoder, encoder: Encoder, path: Path) -> None:
    """Raise StageError("weights") where `found` is not `encoder`, sizes of images aside."""
    assert isinstance(encoder, (ViT, Beit))
    if replace(encoder, image=found.image) != found:  # type: ignore[attr-defined]
        theirs, ours = found.describe(), encoder.describe()
        raise StageError("weights", f"{path}: holds a {theirs}, where a {ours} is asked for")


def interpolated(state: State, encoder: Encoder) -> State:
    """With the position table of another size of image made one for the encoder's grid."""
    if isinstance(encoder, Beit):
        side = 2 * encoder.grid[0] - 1
        table = resize_rel_pos_bias_table(
            state[TABLE].float(), encoder.grid, (side * side + 3, state[TABLE].shape[1])
        )
        return {**state, TABLE: table}
    positions = resample_abs_pos_embed(state["pos_embed"].float(), list(encoder.grid))
    return {**state, "pos_embed": positions}


def timm_names(names: Iterable[str]) -> dict[str, str]:
    """timm's name of each of the encoder's tensors, to the official, mmpretrain's or timm's one."""
    ours = unwrapped(names)
    if any(name.startswith("layers.") for name in ours):
        ours = {_from_mmpretrain(name): theirs for name, theirs in ours.items()}
    return {name: theirs for name, theirs in ours.items() if not BESIDES.match(name)}


def _from_mmpretrain(name: str) -> str:
    name = re.sub(r"^ln1\.", "norm.", name)
    for theirs, timms in MMPRETRAIN:
        name = name.replace(theirs, timms, 1)
    return name


def _to_mmpretrain(name: str) -> str:
    if name.startswith("norm."):
        return f"backbone.{name.replace('norm.', 'ln1.', 1)}"
    name = re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", name)
    for theirs, timms in MMPRETRAIN:
        name = name.replace(timms, theirs, 1)
    return f"backbone.{name}"


def with_shared_table(state: State, path: Path) -> State:
    """With one table of relative position biases, where every block brings its equal own."""
    own = [name for name in state if name.endswith(".attn.relative_position_bias_table")]
    if not own:
        return state
    first = state[own[0]]
    if not all(torch.equal(state[name], first) for name in own):
        raise StageError(
            "weights",
            f"{path}: blocks have relative position biases of their own: a fine-tuned network, "
            "where one from pretraining is needed",
        )
    return {TABLE: first, **{name: item for name, item in state.items() if name not in own}}


def with_fused_bias(state: State) -> State:
    """With BEiT's biases of queries and values (CAE) as the one bias that a ViT has."""
    fused: State = {}
    for name, item in state.items():
        if name.endswith(".q_bias"):
            value = state[name.replace(".q_bias", ".v_bias")]
            fused[name.replace(".q_bias", ".qkv.bias")] = torch.cat(
                [item, torch.zeros_like(item), value]
            )
        elif not name.endswith(".v_bias"):
            fused[re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name)] = item
    return fused


def sized(encoder: Encoder, state: State, path: Path) -> Encoder:
    """`encoder` with the sizes that the tensors have; heads of a ViT have 64 channels.

    Raises StageError("weights") where they are of no ViT or Beit.
    """
    assert isinstance(encoder, (ViT, Beit))
    try:
        width = state["cls_token"].shape[-1]
        patch = state["patch_embed.proj.weight"].shape[-1]
        depth = 1 + max(int(n.split(".")[1]) for n in state if n.startswith("blocks."))
        if depth > len(state):  # or a name alone could ask for any number of blocks
            raise ValueError(f"{depth} blocks in {len(state)} tensors")
        if isinstance(encoder, Beit):
            rows, heads = state[TABLE].shape
            side = (math.isqrt(rows - 3) + 1) // 2
        else:
            side = math.isqrt(state["pos_embed"].shape[1] - 1)
            heads = encoder.heads if width == encoder.width else max(1, width // 64)
        return replace(
            encoder, image=side * patch, patch=patch, width=width, depth=depth, heads=heads
        )
    except (LookupError, ValueError, ArithmeticError) as error:
        kind = type(encoder).__name__
        raise StageError("weights", f"{path}: no {kind} from pretraining: {error}") from None


def _check_fit(state: State, encoder: Encoder, path: Path) -> None:
    name, arguments = encoder.timm()
    try:
        with torch.device("meta"):
            expected: State = timm.create_model(name, **arguments).state_dict()
    except BROKEN as error:
        raise StageError("weights", f"{path}: sizes of no encoder: {error}") from None
    shared = expected.keys() & state.keys()
    wrong = {
        "missing": expected.keys() - state.keys(),
        "unexpected": state.keys() - expected.keys(),
        "of another shape": {n for n in shared if state[n].shape != expected[n].shape},
        "of whole numbers": {n for n in shared if not state[n].is_floating_point()},
    }
    told = [f"{len(each)} {what}: {_some(each)}" for what, each in wrong.items() if each]
    if not told:
        broken = {name for name, item in state.items() if not bool(item.float().isfinite().all())}
        told = [f"{len(broken)} not finite: {_some(broken)}"] if broken else []
    if told:
        raise StageError("weights", f"{path}: tensors do not fit: {'; '.join(told)}")


def _some(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")


def export_encoder(folder: Path, path: Path, format: str) -> None:
    """See `methods.released.export_encoder`."""
    source = folder / "encoder.safetensors"
    try:
        state: State = load_file(source)
    except (OSError, SafetensorError) as error:
        raise StageError("needs", f"{source}: no encoder ({error})") from None
    if format == "mmpretrain":
        swin = any(name.startswith("layers.") for name in state)
        ours = {_to_mmpretrain(name): item for name, item in state.items()}
        state = to_mmpretrain(state) if swin else ours
    try:
        with replacing(path) as aside:
            if path.suffix == ".safetensors":
                save_tensors(state, aside)
            else:
                torch.save({"state_dict": state}, aside)
    except (OSError, RuntimeError) as error:
        raise StageError("disk", f"{path}: cannot be written: {error}") from error
