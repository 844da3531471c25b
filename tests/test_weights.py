"""Released checkpoints on the command line: into the store, evaluated, and out of it again."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from command_line import harness
from safetensors.torch import load_file

from harness.plan import make_plan
from harness.study import Study, StudyRow, load_scale, load_study
from methods.errors import InputError

State = dict[str, torch.Tensor]
Official = Callable[[str], tuple[Path, State]]


@pytest.fixture
def official(tmp_path: Path) -> Official:
    """Makes a checkpoint of a tiny encoder in the layout of the method's own code."""

    def make(name: str) -> tuple[Path, State]:
        encoder = make_plan(Study("s", methods=(name,)), load_scale("tiny")).rows[0].encoder
        torch.manual_seed(0)
        model, arguments = encoder.timm()
        state: State = timm.create_model(model, **arguments).state_dict()
        besides = {"mask_token": torch.zeros(1, 1, 4), "decoder_pred.bias": torch.zeros(4)}
        path = tmp_path / f"{name}.pth"
        torch.save({"model": {**state, **besides}, "epoch": 3}, path)
        return path, state

    return make


def test_a_released_encoder_is_a_finished_stage(
    official: Official, tmp_path: Path, data: Path
) -> None:
    """Import, chain an evaluation behind it without its file, and export it for plain timm."""
    path, state = official("mae")
    words = ("import", path, "--method", "mae", "--scale", "tiny")
    done = harness(*words, cwd=tmp_path)
    assert f"{len(state)} tensors loaded, 0 missing, 0 unexpected" in done.stdout
    assert "2 left out, not of the encoder: decoder_pred.bias, mask_token" in done.stdout
    assert "in the store already" in harness(*words, cwd=tmp_path).stdout
    (folder,) = (tmp_path / "runs" / "pretrain").iterdir()
    assert json.loads((folder / "stage.json").read_text())["task"]["type"] == "ImportedEncoder"
    path.unlink()
    command = done.stdout.splitlines()[-1].partition("harness ")[2].split()
    run = harness(*command, "--evals", "linear", "--data", data, cwd=tmp_path)
    assert run.returncode == 0
    report = harness("report", "--scale", "tiny", "--format", "json", cwd=tmp_path)
    rows = {(each["method"], each["variant"], each["state"]) for each in records(report.stdout)}
    assert ("mae", "released", "done") in rows
    loaded_elsewhere(folder, state, tmp_path)


def records(text: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(text)["records"]
    return found


def loaded_elsewhere(folder: Path, state: State, place: Path) -> None:
    """The line that export prints builds the model, which gives the features it had."""
    out = harness("export", folder.name, "--format", "timm", "--out", "out.pth", cwd=place)
    call = ast.parse(out.stderr.strip().splitlines()[-1], mode="eval").body
    assert isinstance(call, ast.Call)
    given = {each.arg: ast.literal_eval(each.value) for each in call.keywords if each.arg}
    path, name = place / given.pop("checkpoint_path"), ast.literal_eval(call.args[0])
    assert path.name == "out.pth"
    models: list[Any] = [
        timm.create_model(name, **given).eval(),
        timm.create_model(name, **given, checkpoint_path=str(path)).eval(),
    ]
    models[0].load_state_dict(state, strict=True)
    # timm took the file strictly; that it is the whole file, once more by hand:
    models[1].load_state_dict(torch.load(path)["state_dict"], strict=True)
    images = torch.rand(2, 3, 48, 48)
    assert torch.equal(*(model.forward_features(images) for model in models))
    harness("export", folder.name, "--format", "mmpretrain", cwd=place)
    names = load_file(place / f"{folder.name}-mmpretrain.safetensors")
    assert "backbone.layers.0.ffn.layers.0.0.weight" in names


def test_what_does_not_fit_leaves_nothing(official: Official, tmp_path: Path) -> None:
    path, state = official("mae")
    del state["blocks.1.norm1.weight"]
    torch.save(state, path)
    words = ("import", path, "--method", "mae", "--scale", "tiny")
    done = harness(*words, cwd=tmp_path, check=False)
    assert done.returncode == 2 and not (tmp_path / "runs").exists()
    last = done.stderr.splitlines()[-1]  # an old open_clip has newer torches warn before it
    assert re.match(r"error: \S*mae\.pth: .* 1 missing: blocks\.1\.norm1\.weight$", last)
    done = harness(
        "import", path, "--method", "beitv2", "--scale", "tiny", cwd=tmp_path, check=False
    )
    assert done.returncode == 2 and "no Beit from pretraining" in done.stderr
    done = harness("import", "nowhere", "--method", "mae", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "'nowhere' cannot be read" in done.stderr


def test_a_row_with_weights_is_known_by_their_content(official: Official, tmp_path: Path) -> None:
    path, _ = official("beitv2")
    scale = load_scale("tiny")

    def key(weights: str) -> str:
        rows = (StudyRow("beitv2", "released", weights=weights),)
        plan = make_plan(Study("s", rows=rows, evals=("linear", "finetune")), scale)
        assert [stage.kind for stage in plan.stages.values()] == ["pretrain", "linear", "finetune"]
        assert plan.records()["rows"][0]["epochs"] == 0
        return plan.rows[0].stages["pretrain"].key

    moved = path.with_name("moved.pth")
    moved.write_bytes(path.read_bytes())
    assert key(str(path)) == key(str(moved))
    before = key(str(path))
    path.write_bytes(path.read_bytes() + b"x")
    assert key(str(path)) != before


def test_schedules_are_rows() -> None:
    paper = load_scale("paper")
    study = load_study("comparison").only(("beitv2",)).with_schedule("1600")
    (row, *_) = make_plan(study, paper).rows
    assert row.value.optimisation.epochs == 1600 and row.label == "beitv2-1600-s0"
    assert row.stages["finetune"].task.drop_path == 0.2
    rows = (StudyRow("beitv2", schedule="large", set={"optimisation.epochs": 70}),)
    (row,) = make_plan(Study("s", rows=rows), paper).rows
    assert row.encoder.describe() == "ViT-L/16" and row.value.optimisation.epochs == 70
    with pytest.raises(InputError, match=r"schedule: beitv2 has no 'larg' \(did you mean 'large'"):
        make_plan(Study("s", rows=(StudyRow("beitv2", schedule="larg"),)), paper)
