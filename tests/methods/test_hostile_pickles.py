"""A hostile pickle in place of any file of weights or images that is read: nothing is executed."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_methods import tiny
from weight_files import READ, Hostile, hostile_files, stage_with_encoder

from evals.encoders import source
from evals.segmentation import Segmentation
from evals.segmentation_data import TrainingSample, open_pictures
from methods.data.imagefolder import read_rgb
from methods.data.sets import PatchworkSegmentation
from methods.engine import checkpoint
from methods.engine.work import Work
from methods.errors import StageError
from methods.released import export_encoder
from methods.teachers import load_teacher, load_tokenizer

FORMS = ("plain", "zip", "legacy", "script")


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that the pickles would make."""
    (tmp_path / "forms").mkdir()
    return tmp_path / "forms" / "executed"


def test_the_pickle_would_work(mark: Path) -> None:
    pickle.loads(pickle.dumps(Hostile(mark)))
    assert mark.exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", READ)
def test_released_files(kind: str, form: str, mark: Path, tmp_path: Path) -> None:
    suffix, _, loader = READ[kind]
    path = tmp_path / f"given{suffix}"
    path.write_bytes(hostile_files(mark)[form])
    with pytest.raises(StageError, match="given") as refused:
        loader(path, tmp_path)
    assert refused.value.reason == "weights" and not mark.exists()


@pytest.mark.parametrize("form", FORMS)
def test_checkpoints_of_ours(form: str, mark: Path, tmp_path: Path) -> None:
    """Even under the checksum that its name asks for."""
    content = hostile_files(mark)[form]
    given = tmp_path / "state"
    given.write_bytes(content)
    from methods.released import digest

    path = tmp_path / f"step-0000000001-{digest(given)}.pt"
    given.rename(path)
    assert checkpoint.newest(tmp_path) == (path, [])
    with pytest.raises(StageError, match="step-0000000001") as refused:
        checkpoint.read(path)
    assert refused.value.reason == "weights" and not mark.exists()


@pytest.mark.parametrize("form", FORMS)
def test_files_of_finished_stages(
    form: str, mark: Path, tmp_path: Path, needs: dict[str, Path]
) -> None:
    """Stores are handed around: what stages leave is read as warily as what was fetched."""
    hostile = hostile_files(mark)[form]
    readers: dict[str, tuple[Path, Callable[[Path], Any]]] = {
        "clip.safetensors": (needs["clip"], load_teacher),
        "tokenizer.safetensors": (needs["vqkd"], load_tokenizer),
        "encoder.safetensors": (stage_with_encoder(tmp_path / "encoder"), load_teacher),
    }
    for name, (folder, read) in readers.items():
        copy = tmp_path / f"copy-{name}"
        shutil.copytree(folder, copy)
        (copy / name).write_bytes(hostile)
        with pytest.raises(StageError, match=name):
            read(copy)
    with pytest.raises(StageError, match="encoder.safetensors"):
        export_encoder(copy, tmp_path / "out.pth", "timm")
    with pytest.raises(StageError, match="encoder.safetensors"):
        source(Work(tmp_path, {"encoder": copy}), tiny("mae").encoder, 0, "imagenet")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["checkpoint_path", "pretrained", "pretrained_cfg", "cache_dir"])
def test_a_description_cannot_name_further_files(name: str, mark: Path, tmp_path: Path) -> None:
    """timm would load `checkpoint_path`, and fetch what the others say."""
    folder = stage_with_encoder(tmp_path / "stage")
    (tmp_path / "evil.pth").write_bytes(hostile_files(mark)["zip"])
    about = json.loads((folder / "encoder.json").read_text())
    about["arguments"][name] = str(tmp_path / "evil.pth")
    (folder / "encoder.json").write_text(json.dumps(about))
    work = Work(tmp_path, {"encoder": folder})
    with pytest.raises(StageError, match=f"encoder.json: arguments.{name}: unknown"):
        source(work, tiny("mae").encoder, 0, "imagenet")
    with pytest.raises(StageError, match=f"encoder.json: arguments.{name}: unknown"):
        load_teacher(folder)
    about["arguments"].pop(name)
    about["model"] = "hf-hub:somebody/something"
    (folder / "encoder.json").write_text(json.dumps(about))
    with pytest.raises(StageError, match="not the name of one of timm's"):
        source(work, tiny("mae").encoder, 0, "imagenet")
    assert not mark.exists()


def test_a_card_cannot_name_models_to_fetch(tmp_path: Path, needs: dict[str, Path]) -> None:
    """open_clip would fetch a `hf_model_name` or a pretrained `timm_model_name`."""
    for part, name in (("text_cfg", "hf_model_name"), ("vision_cfg", "timm_model_name")):
        folder = tmp_path / part
        shutil.copytree(needs["clip"], folder)
        about = json.loads((folder / "clip.json").read_text())
        about["model"][part][name] = "somebody/something"
        (folder / "clip.json").write_text(json.dumps(about))
        with pytest.raises(StageError, match=f"clip.*{name}"):
            load_teacher(folder)


@pytest.mark.parametrize("form", FORMS)
def test_images_and_masks(form: str, mark: Path, tmp_path: Path) -> None:
    hostile = hostile_files(mark)[form]
    (tmp_path / "one.png").write_bytes(hostile)
    with pytest.raises(StageError, match="one.png"):
        read_rgb(tmp_path / "one.png")
    scenes = PatchworkSegmentation(train=10, teacher=10, validation=10)
    scenes.prepare(tmp_path)
    task = Segmentation(tiny("mae").encoder, scenes, crop=48, scale=(48, 48))
    folder = scenes.root(tmp_path)
    pictures = open_pictures(task, tmp_path, "train")
    for kind in ("images", "annotations"):
        (path, *_) = sorted((folder / kind / "training").iterdir())
        before = path.read_bytes()
        path.write_bytes(hostile)
        with pytest.raises(StageError, match=path.name):
            for index in range(len(pictures)):
                TrainingSample(pictures, 48)(pictures[index], np.random.default_rng(0))
        path.write_bytes(before)
    assert not mark.exists()
