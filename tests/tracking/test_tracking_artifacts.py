"""Files and data sets of the mirror's runs on sqlite; no secret reaches them."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import tracking_folders as make
from tracking_reading import runs_of

from evals.linear import LinearProbe
from harness import tracking
from harness.store import Store
from harness.tracking.server import connect, own_uri
from methods.parts.encoder import ViT
from methods.values import to_plain


def test_task_environment_data_set_and_weights_are_recorded(store: Store) -> None:
    make.write_done(store.root)
    folder = make.folder_of(store.root, "pretrain")
    pictures, digest = folder / "pictures", "0f" * 32
    pictures.mkdir()
    (pictures / "mask.png").write_bytes(b"png")
    (folder / "state").mkdir()
    (folder / f"state/step-0000000010-{digest}.pt").write_bytes(b"a checkpoint")
    tracking.sync(store)
    client, run = connect(own_uri(store.root)), runs_of(store)[make.KEYS["pretrain"]]
    names = {each.path for each in client.list_artifacts(run.info.run_id)}
    assert names == {"task.json", "environment.json", "metrics.jsonl", "pictures"}
    assert (store.root / "mlartifacts").is_dir()
    assert run.inputs.dataset_inputs[0].dataset.name == "Patchwork"
    assert run.data.tags["encoder.path"] == f"pretrain/milan-s0-{make.KEYS['pretrain']}/" + (
        "encoder.safetensors"
    )
    assert len(run.data.tags["encoder.sha256"]) == 64
    assert run.data.tags["checkpoint.path"].endswith(f"/state/step-0000000010-{digest}.pt")
    assert run.data.tags["checkpoint.sha256"] == digest


def test_an_evaluation_has_its_protocol_card(store: Store) -> None:
    make.write_done(store.root)
    path = make.folder_of(store.root, "linear") / "stage.json"
    stage = json.loads(path.read_text())
    path.write_text(json.dumps({**stage, "task": to_plain(LinearProbe(ViT()))}))
    tracking.sync(store)
    run = runs_of(store)[make.KEYS["linear"]]
    place = connect(own_uri(store.root)).download_artifacts(
        run.info.run_id, "protocol.json", str(store.root)
    )
    assert json.loads(Path(place).read_text()) == LinearProbe(ViT()).protocol()


def test_secrets_reach_no_tag_parameter_or_file(store: Store, tmp_path: Path) -> None:
    make.write_plan(store.root)
    job = {"environment": {"WANDB_API_KEY": "s3cr3t"}, "setup": "export TOKEN=s3cr3t"}
    folder = make.write_stage(store.root, "pretrain", job)
    message = "https://me:s3cr3t@host/x refused; HF_TOKEN=s3cr3t, cls_token: missing"
    make.write_outcome(folder, "failed", error={"reason": "weights", "message": message})
    tracking.sync(store)
    tags = runs_of(store)[make.KEYS["pretrain"]].data.tags
    assert "cls_token: missing" in tags["error"]
    with sqlite3.connect(store.root / "mlflow.db") as database:
        assert "s3cr3t" not in "\n".join(database.iterdump())
    for path in (store.root / "mlartifacts").rglob("*"):
        assert path.is_dir() or b"s3cr3t" not in path.read_bytes()
