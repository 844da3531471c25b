"""Stores made of the file formats themselves, with as much in them as a test needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness.store import write_json

START = 1_700_000_000.0
KEYS = {
    "teacher": "aaaaaaaa01",
    "pretrain": "aaaaaaaa02",
    "linear": "aaaaaaaa03",
    "pretrain4": "aaaaaaaa04",
    "linear4": "aaaaaaaa05",
}
LABELS = {"teacher": "clip", "pretrain4": "milan-depth-4-s0", "linear4": "milan-depth-4-s0"}


def task(kind: str, depth: int = 8) -> dict[str, Any]:
    """A task's plain data."""
    data = {"type": "Patchwork", "train": 64, "size": 48}
    if kind != "pretrain":
        return {"encoder": {"type": "ViT", "width": 64}, "data": data, "seed": 0}
    method = {
        "name": "milan",
        "masking": {"type": "SemanticAware", "ratio": 0.75},
        "decoder": {"type": "Prompting", "depth": depth, "prompting": True},
        "objectives": [{"target": {"type": "Features"}, "loss": {"type": "Cosine"}}],
    }
    return {"method": method, "data": data, "seed": 0, "threads": 1}


def write_plan(root: Path, **changes: Any) -> dict[str, Any]:
    """A study of two rows: milan, and milan with a shallower decoder; they share a teacher."""
    row = {"method": "milan", "seed": 0, "encoder": "ViT-T", "decoder": "", "target": "CLIP"}
    rows = [
        {
            **row,
            "variant": variant,
            "label": label,
            "changed": changed,
            "epochs": 2,
            "stages": {"pretrain": KEYS[f"pretrain{end}"], "linear": KEYS[f"linear{end}"]},
        }
        for variant, label, changed, end in (
            ("", "milan-s0", {}, ""),
            ("depth 4", "milan-depth-4-s0", {"decoder.depth": 4}, "4"),
        )
    ]
    needs = {
        "teacher": {},
        "pretrain": {"clip": KEYS["teacher"]},
        "linear": {"encoder": KEYS["pretrain"]},
        "pretrain4": {"clip": KEYS["teacher"]},
        "linear4": {"encoder": KEYS["pretrain4"]},
    }
    plan = {
        "format": 1,
        "study": {"name": "comparison", "title": "All", "scale": "mini", "note": "", **changes},
        "rows": rows,
        "stages": {
            KEYS[name]: {"kind": name.rstrip("4"), "label": label(name), "needs": needs[name]}
            for name in KEYS
        },
        "command": ["harness", "run"],
    }
    (root / "studies").mkdir(parents=True, exist_ok=True)
    write_json(root / "studies" / "comparison.json", plan)
    return plan


def label(name: str) -> str:
    return LABELS.get(name, "milan-s0")


def folder_of(root: Path, name: str) -> Path:
    return root / name.rstrip("4") / f"{label(name)}-{KEYS[name]}"


def write_stage(root: Path, name: str, job: dict[str, Any] | None = None) -> Path:
    """A stage that has been submitted."""
    folder, kind = folder_of(root, name), name.rstrip("4")
    folder.mkdir(parents=True)
    record = {
        "format": 1,
        "key": KEYS[name],
        "kind": kind,
        "version": 1,
        "label": label(name),
        "task": task(kind, 4 if name == "pretrain4" else 8),
        "study": "comparison",
        "needs": json.loads((root / "studies/comparison.json").read_text())["stages"][KEYS[name]][
            "needs"
        ],
        "scale": "mini",
        "method": "milan",
        "variant": "",
        "seed": 0,
        "commit": "c0ffee",
        "dirty": False,
    }
    write_json(folder / "stage.json", record)
    write_attempt(folder, "1", **(job or {}))
    return folder


def write_attempt(folder: Path, name: str, **job: Any) -> None:
    place = folder / "attempts" / name
    place.mkdir(parents=True, exist_ok=True)
    about = {"attempt": name, "submitted": START, "backend": "slurm", "cluster": "dev"}
    write_json(place / "job.json", {**about, "job_id": f"7{name}", **job})


def write_curve(folder: Path, first: int, last: int, late: float = 0.0, scale: float = 1.0) -> None:
    """Steps first..last of the curve that this stage has, logged `late` seconds later."""
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        for step in range(first, last + 1):
            values = {"loss": scale * (2.0 + 1.0 / step), "lr": 0.001, "images_per_second": 9.0}
            line = {"step": step, "time": START + step + late, **values}
            file.write(json.dumps(line) + "\n")


def rewind(folder: Path, step: int) -> None:
    """What a resumed stage does to its metrics."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("".join(f"{x}\n" for x in lines if json.loads(x)["step"] <= step))


def write_outcome(folder: Path, status: str = "done", **changes: Any) -> None:
    name = {"linear": "top1", "teacher": "zero_shot"}.get(folder.parent.name, "loss")
    outcome = {
        "status": status,
        "metrics": {name: 61.5} if status == "done" else {},
        "cost": {"seconds": 10.0, "images": 640, "device": "cpu", "images_per_second": 64.0},
        "attempt": "1",
        "finished": START + 100,
        "versions": {"torch": "2"},
        "commit": "c0ffee",
        **changes,
    }
    write_json(folder / "outcome.json", outcome)


def write_owner(folder: Path, pid: int, host: str, attempt: str = "1") -> None:
    write_json(folder / "owner.json", {"pid": pid, "host": host, "attempt": attempt, "token": "t"})


def write_pretraining(root: Path, steps: int) -> Path:
    """A plan of whose stages the pretraining alone has begun, so many updates long; its folder."""
    write_plan(root)
    folder = write_stage(root, "pretrain")
    write_curve(folder, 1, steps)
    return folder


def write_done(root: Path) -> None:
    """A whole study, finished."""
    write_plan(root)
    for name in KEYS:
        folder = write_stage(root, name)
        write_curve(folder, 1, 10)
        write_outcome(folder)
    encoder = folder_of(root, "pretrain") / "encoder.safetensors"
    encoder.write_bytes(b"weights")


def dead_pid() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid
