"""Small valid weight files of every kind that is read, what is wrong with others, and loaders."""

from __future__ import annotations

import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from namespace import Namespace
from safetensors.torch import save_file
from tiny_methods import tiny
from torch import Tensor, nn

from methods.engine.work import Work
from methods.networks.export import write_encoder
from methods.released import import_encoder
from methods.teachers import ReleasedClip, ReleasedDalle, ReleasedVqkd
from methods.teachers.clip_network import build_clip
from methods.teachers.dalle_network import DalleEncoder
from methods.teachers.vqkd_network import VqkdNetwork

State = dict[str, Tensor]
Loader = Callable[[Path, Path], Any]
"""Reads the file at the first path; may write into the folder at the second."""

CLIP: dict[str, Any] = {
    "embed_dim": 8,
    "vision_cfg": {
        "layers": 1,
        "width": 64,
        "head_width": 64,
        "patch_size": 14,
        "image_size": 28,
    },
    "text_cfg": {"context_length": 4, "vocab_size": 10, "width": 64, "heads": 1, "layers": 1},
    "quick_gelu": True,
}


def encoder_state(name: str) -> State:
    torch.manual_seed(0)
    return dict(tiny(name).encoder.build().model.state_dict())


def clip_state() -> State:
    torch.manual_seed(0)
    return build_clip(CLIP).state_dict()


def vqkd_state() -> State:
    torch.manual_seed(0)
    network = VqkdNetwork(16, 8, 64, 1, 1, 1, codes=8, code_dimension=4, target=4)
    weight = network.quantize.embedding.weight
    weight.data = nn.functional.normalize(weight.data, dim=-1)
    return network.state_dict()


def dalle_state() -> State:
    torch.manual_seed(0)
    return DalleEncoder(image=16, hidden=4, blocks=1, codes=8).state_dict()


def saved(state: State, path: Path) -> Path:
    """`state` in the format that the name of `path` asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({name: item.contiguous().clone() for name, item in state.items()}, path)
    elif path.suffix == ".ts":
        root = Namespace()
        for name, tensor in state.items():
            root.add(name, tensor)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.script(root).save(str(path))
    else:
        torch.save({"model": state}, path)
    return path


def released(task: type, **fields: Any) -> Loader:
    """The conversion of a released teacher or tokenizer."""

    def read(path: Path, folder: Path) -> Any:
        found = task(weights=path.name, sha256="", **fields)
        return found.run(Work(folder, data=path.parent))

    return read


def imported(name: str) -> Loader:
    encoder = tiny(name).encoder
    return lambda path, folder: import_encoder(path, encoder, "imagenet", folder)


# What is read -> the file's suffix, a valid state and its loader.
READ: dict[str, tuple[str, Callable[[], State], Loader]] = {
    "ViT, torch.save": (".pth", lambda: encoder_state("mae"), imported("mae")),
    "ViT, safetensors": (".safetensors", lambda: encoder_state("mae"), imported("mae")),
    "Beit, torch.save": (".pth", lambda: encoder_state("beitv2"), imported("beitv2")),
    "CLIP, TorchScript": (".ts", clip_state, released(ReleasedClip)),
    "CLIP, safetensors": (".safetensors", clip_state, released(ReleasedClip)),
    "VQ-KD, torch.save": (".pth", vqkd_state, released(ReleasedVqkd, heads=1)),
    "DALL-E, module": (".pkl", dalle_state, released(ReleasedDalle, image=16)),
}


@st.composite
def changed(draw: st.DrawFn, state: State) -> State:
    """`state` with one or two tensors missing, added, renamed, or of another shape or type."""
    state = dict(state)
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(state)))
        how = draw(st.sampled_from(["drop", "add", "rename", "shape", "type", "nan", "number"]))
        if how == "drop" and len(state) > 1:
            del state[name]
        elif how == "add":
            state[draw(st.sampled_from(["x", "blocks.7.x", "head.weight", ".", "blocks."]))] = (
                torch.zeros(2)
            )
        elif how == "rename":
            state[name.replace("0", "999999999")] = state.pop(name)
        elif how == "shape":
            shape = draw(st.sampled_from([(), (0,), (1,), (3, 5), (1, 2, 3, 4), (0, 2**20)]))
            state[name] = torch.zeros(shape)
        elif how == "type":
            kinds = [torch.int64, torch.bool, torch.float16, torch.float64, torch.complex64]
            state[name] = torch.zeros(state[name].shape, dtype=draw(st.sampled_from(kinds)))
        elif how == "nan":
            state[name] = torch.full(state[name].shape, float("nan"))
    return state


class Hostile:
    """Unpickling it makes the file `mark`."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.mark}'",)


def hostile_files(mark: Path) -> dict[str, bytes]:
    """The same hostile pickle in every form in which torch has saved files, by name."""
    payload = {"model": {"weight": Hostile(mark)}}
    folder = mark.parent
    torch.save(payload, folder / "zip")
    torch.save(payload, folder / "legacy", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(folder / "script", "w") as archive:
        for name in ("data.pkl", "constants.pkl"):
            archive.writestr(f"archive/{name}", pickle.dumps(payload, protocol=2))
        archive.writestr("archive/version", "3")
    found = {name: (folder / name).read_bytes() for name in ("zip", "legacy", "script")}
    return {"plain": pickle.dumps(payload, protocol=2), **found}


def stage_with_encoder(folder: Path) -> Path:
    """The folder of a finished pretraining."""
    write_encoder(encoder_state("mae"), tiny("mae").encoder, "imagenet", folder)
    return folder


def card(folder: Path, name: str, plain: Any) -> None:
    (folder / name).write_text(json.dumps(plain))
