"""Weight files of other people: every format is read, and nothing in them is executed."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from namespace import Namespace
from open_clip.transformer import QuickGELU
from safetensors.torch import load_file, save_file
from torch import Tensor

from methods.engine.work import Work
from methods.errors import StageError
from methods.teachers import ReleasedClip, load_teacher
from methods.teachers.archive import read_weights
from methods.teachers.clip_network import build_clip
from methods.teachers.released_clip import model_of, resize_positions

MODEL: dict[str, Any] = {
    "embed_dim": 8,
    "vision_cfg": {
        "layers": 2,
        "width": 64,
        "head_width": 64,
        "patch_size": 14,
        "image_size": 56,
    },
    "text_cfg": {"context_length": 4, "vocab_size": 10, "width": 64, "heads": 1, "layers": 1},
    "quick_gelu": True,
}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(3)
    return build_clip(MODEL).state_dict()


def archive(state: dict[str, Tensor], path: Path) -> Path:
    """OpenAI's kind of file: TorchScript, half precision, three constants among the tensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    root = Namespace()
    for name, tensor in state.items():
        root.add(name, tensor.half() if tensor.ndim > 1 else tensor)
    for name in ("input_resolution", "context_length", "vocab_size"):
        root.add(name, torch.tensor(56))
    torch.jit.script(root).save(str(path))
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:8]


def run(task: ReleasedClip, data: Path, folder: Path) -> Path:
    folder.mkdir()
    assert task.run(Work(folder=folder, data=data)) == {}
    return folder


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def assert_quick_gelu(mlp: Any, state: dict[str, Tensor]) -> None:
    """The teacher's branch is the one with OpenAI's x sigmoid(1.702 x), which it has folded."""
    name = "visual.transformer.resblocks.1.mlp"
    tokens = torch.randn(3, 64)
    wide = F.linear(tokens, state[f"{name}.c_fc.weight"], state[f"{name}.c_fc.bias"])
    wide = QuickGELU()(wide)
    expected = F.linear(wide, state[f"{name}.c_proj.weight"], state[f"{name}.c_proj.bias"])
    torch.testing.assert_close(mlp(tokens), expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_every_format_gives_the_same_teacher(state: dict[str, Tensor], tmp_path: Path) -> None:
    clip = tmp_path / "clip"
    archive(state, clip / "script.pt")
    half = {name: t.half() if t.ndim > 1 else t for name, t in state.items()}
    plain = {name: tensor.float() for name, tensor in half.items()}
    save_file(half, clip / "state.safetensors")
    torch.save({"state_dict": half}, clip / "state.pt")
    visual = {name: tensor for name, tensor in half.items() if name.startswith("visual.")}
    save_file(visual, clip / "visual.safetensors")
    images = torch.rand(2, 3, 56, 56)
    outputs = []
    for name in ("script.pt", "state.safetensors", "state.pt", "visual.safetensors"):
        task = ReleasedClip(weights=f"clip/{name}", sha256=digest(clip / name))
        folder = run(task, tmp_path, tmp_path / name.replace(".", "-"))
        teacher = load_teacher(folder, grid=(4, 4))
        assert_quick_gelu(teacher.visual.transformer.resblocks[1].mlp, plain)
        outputs.append(teacher(images).projected)
    for other in outputs[1:]:
        assert torch.equal(outputs[0], other)
    torch.testing.assert_close(
        load_file(folder / "clip.safetensors")["visual.proj"], plain["visual.proj"]
    )


def test_sizes_of_the_released_models() -> None:
    def shapes(width: int, depth: int, patch: int, grid: int, out: int) -> dict[str, Tensor]:
        meta = {"device": "meta"}
        blocks = {
            f"visual.transformer.resblocks.{i}.ln_1.weight": torch.empty(width, **meta)
            for i in range(depth)
        }
        return blocks | {
            "visual.conv1.weight": torch.empty(width, 3, patch, patch, **meta),
            "visual.positional_embedding": torch.empty(1 + grid * grid, width, **meta),
            "visual.proj": torch.empty(width, out, **meta),
        }

    base = model_of(shapes(768, 12, 16, 14, 512))
    large = model_of(shapes(1024, 24, 14, 16, 768))
    assert base["vision_cfg"]["image_size"] == large["vision_cfg"]["image_size"] == 224
    for model, parameters in ((base, 86_192_640), (large, 303_966_208)):
        with torch.device("meta"):
            visual = build_clip(model).visual
        assert sum(parameter.numel() for parameter in visual.parameters()) == parameters


def test_positions_are_interpolated(state: dict[str, Tensor], tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    save_file(state, tmp_path / "clip" / "w.safetensors")
    task = ReleasedClip(weights="clip/w.safetensors", sha256="", image=42)
    teacher = load_teacher(run(task, tmp_path, tmp_path / "out"), grid=(3, 3))
    positions = state["visual.positional_embedding"]
    squares = positions[1:].reshape(4, 4, 64).permute(2, 0, 1)[None]
    expected = (
        F.interpolate(squares, size=(3, 3), mode="bicubic")[0].permute(1, 2, 0).reshape(9, 64)
    )
    torch.testing.assert_close(teacher.visual.positional_embedding[1:], expected)
    assert torch.equal(teacher.visual.positional_embedding[0], positions[0])
    assert resize_positions(positions, 56, 14) is positions
    assert teacher(torch.rand(1, 3, 56, 56)).raw.shape == (1, 10, 64)
    odd = dataclasses.replace(task, image=50)
    with pytest.raises(StageError, match="multiple of the patch size"):
        run(odd, tmp_path, tmp_path / "odd")


def test_a_missing_file_says_what_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(
        StageError, match=r"ViT-B-16\.pt is missing: fetch OpenAI's CLIP"
    ) as refused:
        ReleasedClip().run(Work(folder=tmp_path, data=tmp_path))
    assert refused.value.reason == "weights" and str(tmp_path / "clip") in str(refused.value)


def test_another_digest_is_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    save_file(state, tmp_path / "clip" / "ViT-B-16.pt")
    with pytest.raises(StageError, match="expected 5806e77c"):
        ReleasedClip().run(Work(folder=tmp_path, data=tmp_path))


def test_foreign_weights_are_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    lacking = {n: t for n, t in state.items() if n != "visual.ln_post.weight"}
    dead = {n: torch.zeros_like(t) if n == "visual.proj" else t for n, t in state.items()}
    broken = {n: t * torch.nan if n == "visual.proj" else t for n, t in state.items()}
    for name, wrong in {
        "lacking": lacking,
        "broken": broken,
        "resnet": {"a": dead["logit_scale"]},
    }.items():
        save_file(wrong, tmp_path / f"{name}.safetensors")
        task = ReleasedClip(weights=f"{name}.safetensors", sha256="")
        with pytest.raises(StageError, match=name) as refused:
            run(task, tmp_path, tmp_path / name)
        assert refused.value.reason == "weights"


class Hostile:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.mark}'",)


def hostile_files(mark: Path, folder: Path) -> list[Path]:
    """The same hostile pickle as a plain file, a torch.save zip and a TorchScript archive."""
    payload = pickle.dumps({"weight": Hostile(mark)}, protocol=2)
    plain = folder / "plain.pt"
    plain.write_bytes(payload)
    saved = folder / "saved.pt"
    torch.save({"weight": Hostile(mark)}, saved)
    script = folder / "script.pt"
    with zipfile.ZipFile(script, "w") as zipped:
        zipped.writestr("archive/data.pkl", payload)
        zipped.writestr("archive/constants.pkl", payload)
        zipped.writestr("archive/version", "3")
    return [plain, saved, script]


def test_a_hostile_pickle_runs_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    for path in hostile_files(mark, tmp_path):
        with pytest.raises(StageError, match="nothing was executed") as refused:
            read_weights(path)
        assert refused.value.reason == "weights" and not mark.exists()
    assert pickle.loads(pickle.dumps(Hostile(mark))) == 0 and mark.exists()  # it would have worked


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torn_and_empty_files_are_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    whole = archive(state, tmp_path / "whole.pt").read_bytes()
    torn = tmp_path / "torn.pt"
    torn.write_bytes(whole[: len(whole) // 2])
    text = tmp_path / "page.pt"
    text.write_text("<html>404</html>")
    empty = tmp_path / "empty.pt"
    torch.save({"model": {"note": "no tensors"}}, empty)
    for path in (torn, text, empty, tmp_path / "none.safetensors"):
        with pytest.raises(StageError, match=path.stem) as refused:
            read_weights(path)
        assert refused.value.reason == "weights"


def test_a_tensor_outside_its_storage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "outside.pt"
    with zipfile.ZipFile(path, "w") as zipped:
        stream = (
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(("
            b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
            b"X\x03\x00\x00\x00cpuK\x02tQK\x00K\x09\x85K\x01\x85\x89NtR."
        )
        zipped.writestr("archive/data.pkl", stream)
        zipped.writestr("archive/constants.pkl", b"")
        zipped.writestr("archive/data/0", b"\0" * 8)
    with pytest.raises(StageError, match="outside its storage"):
        read_weights(path)
