"""Stores as the harness leaves them: real files of small studies, without any training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

# A cell: the values of its seeds, each a number or a state with what failed.
Values = tuple[Any, ...]


@dataclass
class Row:
    """What a study's row came to: per evaluation one value (or state) for each seed."""

    method: str
    linear: Values = ()
    finetune: Values = ()
    segmentation: Values = ()
    variant: str = ""
    changed: Mapping[str, Any] = field(default_factory=dict)
    pretrain: Values = ()  # states that differ from "done", by seed
    epochs: float = 8
    encoder: str = "ViT 4x128/8"
    milestones: Mapping[str, Values] = field(default_factory=dict)  # {"linear@50": ...}
    gflops: float = 12.0  # of the whole pretraining, 24,000 images
    teacher: str = "clip"

    @property
    def label(self) -> str:
        return f"{self.method} {self.variant}".strip()


REFERENCES = ("random", "scratch")
TEXTS = {
    "milan": ("prompting transformer 2x64", "projected CLIP tokens"),
    "beitv2": ("linear + aggregation", "VQ-KD codes"),
    "maskdistill": ("linear", "CLIP tokens"),
    "mae": ("transformer 2x64", "pixels"),
}


def key_of(*words: object) -> str:
    return hashlib.sha256(repr(words).encode()).hexdigest()[:10]


def make_store(
    root: Path,
    rows: list[Row],
    scale: str = "mini",
    name: str = "comparison",
    title: str = "CLIP distilled",
    history: Callable[[int], list[dict[str, Any]]] | None = None,
    claims: Sequence[Mapping[str, Any]] = (),
    zero_shot: Mapping[str, float] = MappingProxyType({"clip": 0.78}),
) -> Path:
    """Writes plan, stage.json, metrics.jsonl and outcome.json of every stage; returns `root`.

    `zero_shot`: the teachers and their accuracy on 2000 images.
    """
    maker = _Maker(root, scale, history)
    task = {"data": {"validation": 2000}}
    for teacher, accuracy in zero_shot.items():
        metrics = {"zero_shot": accuracy}
        maker.stage("teacher", teacher, key_of(teacher), {}, "done", metrics, task)
    records = [
        maker.row(row, seed)
        for row in rows
        for seed in range(max(map(len, (row.linear, row.finetune, row.segmentation))))
    ]
    plan = {
        "format": 1,
        "study": {
            "name": name,
            "title": title,
            "scale": scale,
            "note": "a note on the scale",
            "claims": list(claims),
        },
        "rows": records,
        "stages": maker.stages,
        "command": ["harness", "run", "--scale", scale, "--retry", "0123456789"],
    }
    (root / "studies").mkdir(parents=True, exist_ok=True)
    (root / "studies" / f"{name}.json").write_text(json.dumps(plan))
    return root


@dataclass
class _Maker:
    root: Path
    scale: str
    history: Callable[[int], list[dict[str, Any]]] | None
    stages: dict[str, Any] = field(default_factory=dict)

    def row(self, row: Row, seed: int) -> dict[str, Any]:
        label = "-".join(each for each in (row.method, row.variant, f"s{seed}") if each)
        stages, needs = {}, {}
        if row.method not in REFERENCES:
            state = row.pretrain[seed] if seed < len(row.pretrain) else "done"
            method = {
                "name": row.method,
                "decoder": {"type": "Transformer", "depth": 8},
                "objectives": [{"loss": "cosine"}],
            }
            key = key_of("pretrain", row.method, row.variant, seed)
            task = {"method": method, "seed": seed}
            needs = {row.teacher: key_of(row.teacher)}
            self.stage("pretrain", label, key, needs, state, {"loss": 0.5}, task, row.gflops)
            stages["pretrain"], needs = key, {"encoder": key}
        for kind in ("linear", "finetune", "segmentation"):
            values = getattr(row, kind)
            if values:
                key = key_of(kind, row.method, row.variant, seed)
                task = {"epochs": 4, "seed": seed}
                self.evaluation(kind, label, key, needs, values[seed], task)
                stages[kind] = key
        for name, values in row.milestones.items():
            key = key_of(name, row.method, row.variant, seed)
            task = {"milestone": int(name.partition("@")[2]) / 100, "seed": seed}
            self.evaluation("linear", label, key, needs, values[seed], task)
            stages[name] = key
        decoder, target = TEXTS.get(row.method, ("", ""))
        return {
            "method": row.method,
            "variant": row.variant,
            "seed": seed,
            "label": label,
            "changed": dict(row.changed),
            "encoder": row.encoder,
            "decoder": decoder,
            "target": target,
            "epochs": 0 if row.method in REFERENCES else row.epochs,
            "stages": stages,
        }

    def evaluation(
        self, kind: str, label: str, key: str, needs: dict[str, str], value: Any, task: Any
    ) -> None:
        metric = "mIoU" if kind == "segmentation" else "top1"
        metrics = {metric: value} if isinstance(value, float) else {}
        state = "done" if metrics else value
        self.stage(kind, label, key, needs, state, metrics, task)

    def stage(
        self,
        kind: str,
        label: str,
        key: str,
        needs: dict[str, str],
        state: Any,
        metrics: Mapping[str, float],
        task: Mapping[str, Any],
        gflops: float = 12.0,
    ) -> str:
        """`state`: done, running, missing, or a (reason, message) of a failure."""
        self.stages[key] = {"kind": kind, "label": label, "needs": needs}
        if state == "missing":
            return key
        name = "".join(char for char in label if char.isalnum() or char in "._+-")
        folder = self.root / kind / f"{name}-{key}"
        folder.mkdir(parents=True)
        about = {"format": 1, "key": key, "kind": kind, "version": 1, "label": label}
        _write(folder / "stage.json", {**about, "task": task, "needs": needs, "commit": "14ab57d"})
        if self.history:
            lines = map(json.dumps, self.history(len(self.stages)))
            (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        if state == "running":
            owner = {"token": "t", "attempt": "a", "host": "elsewhere", "pid": 1}
            _write(folder / "owner.json", owner)
            return key
        error = None if state == "done" else {"reason": state[0], "message": state[1]}
        outcome = {
            "status": "failed" if error else "done",
            "metrics": {} if error else metrics,
            "cost": {"seconds": 60.0, "device": "a processor", "images": 24000, "gflops": gflops},
            "error": error,
            "attempt": "a",
            "finished": 1_790_000_000.0,
            "versions": {"python": "3.11.2", "torch": "2.9.0"},
            "commit": "14ab57d",
        }
        _write(folder / "outcome.json", outcome)
        return key


def _write(path: Path, plain: Any) -> None:
    path.write_text(json.dumps(plain))


def curve(number: int) -> list[dict[str, Any]]:
    """A loss that falls, over 20 steps."""
    return [{"step": step, "time": 1.0, "loss": number + 1 / (1 + step)} for step in range(20)]


NAN = ("nan", "loss is NaN at step 210")
SMALL = [
    Row("milan", (66.1, 66.7), (74.0, 74.4), (38.0, 38.4)),
    Row("beitv2", (61.0, 61.4), (72.5, "missing"), ("missing", "running"), pretrain=("done",)),
    Row("maskdistill", ("missing",) * 2, ("missing",) * 2, ("missing",) * 2, pretrain=(NAN, NAN)),
    Row("mae", (51.0, 51.6), (("memory", "out of memory"),) * 2, (33.0, 33.2)),
    Row("random", (39.8, 40.0)),
    Row("scratch", (), (63.0, 63.8), (28.6, 29.0)),
]
PAPER = [
    Row("milan", (79.5,), (85.6,), (52.5,), epochs=400, encoder="ViT-B/16"),
    Row("beitv2", (80.0,), (85.0,), (52.0,), epochs=300, encoder="ViT-B/16"),
    Row("maskdistill", (76.0,), (85.1,), (54.4,), epochs=100, encoder="ViT-B/16"),
    Row("mae", (68.4,), (83.5,), ("missing",), epochs=1600, encoder="ViT-B/16"),
]
ABLATION = [
    Row("milan", (66.0, 67.0), (74.0, 74.4), (38.0, 38.4)),
    Row(
        "milan",
        (60.5, 61.3),
        (74.1, 74.2),
        (37.0, "missing"),
        variant="decoder 4",
        changed={"decoder.depth": 4},
    ),
    Row("milan", (52.0, 52.4), (71.0, 71.1), variant="mse", changed={"objectives.0.loss": "mse"}),
]
HOSTILE = "<script>alert(1)</script> & 50% of $x_1^2 {a|b}\\~#\n**bold** \x1b[31m\u202e`"
