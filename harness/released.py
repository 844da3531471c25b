"""Released checkpoints into the store, and encoders out of it: `harness import` and `export`."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import cast

import methods
from harness.launch import provenance_of
from harness.plan import Plan, make_plan
from harness.reconcile import about_stage, decide, open_attempt
from harness.request import parse_changes
from harness.store import Store
from harness.study import Study, StudyRow, load_scale
from harness.worker import run_attempt
from methods.errors import InputError, StageError
from methods.parts.exported import read_exported
from methods.pretrain import ImportedEncoder
from methods.released import Imported, export_encoder


def bring_in(options: argparse.Namespace) -> int:
    """Puts a released checkpoint into the store as a finished pretrain stage.

    The file is checked before anything is written. Raises InputError naming file and tensors.
    """
    methods.get(options.method)
    row = StudyRow(options.method, "released", {}, options.schedule, str(options.file))
    study = Study(f"import-{options.method}", rows=(row,), evals=("linear",))
    plan = make_plan(study, load_scale(options.scale), parse_changes(options.changes))
    stage = plan.rows[0].stages["pretrain"]
    task = cast(ImportedEncoder, stage.task)
    try:
        found = task.read()
    except StageError as error:
        raise InputError(str(error)) from None
    print("\n".join(_report(found, task, options.file)))
    folder = _finished(Store(options.store).create(), plan)
    print(f"{folder}\nevaluate it: {_command(options, task)}")
    return 0


def _report(found: Imported, task: ImportedEncoder, path: Path) -> list[str]:
    lines = [f"{path}: {found.loaded} tensors loaded, 0 missing, 0 unexpected"]
    if found.left_out:
        shown = ", ".join(found.left_out[:8]) + (", ..." if len(found.left_out) > 8 else "")
        lines.append(f"{len(found.left_out)} left out, not of the encoder: {shown}")
    image = getattr(task.encoder, "image", found.image)
    if found.image != image:
        lines.append(f"positions interpolated from {found.image} to {image} pixels")
    return lines


def _finished(store: Store, plan: Plan) -> Path:
    """The folder of the stage, which is run in this process unless it is done."""
    stage = plan.rows[0].stages["pretrain"]
    with store.lock():
        decision = decide(store, plan, {})[stage.key]
        if decision.state == "done":
            print("it is in the store already")
            return decision.folder
        # An attempt that failed may have left the name of a place where the file no longer is.
        (decision.folder / "stage.json").unlink(missing_ok=True)
        about = about_stage(plan, stage, provenance_of(store)[0])
        attempt = open_attempt(store, decision, about, {"backend": "local"})
    run_attempt(attempt.folder / "attempts" / attempt.id)
    return attempt.folder


def _command(options: argparse.Namespace, task: ImportedEncoder) -> str:
    """The `harness run` that chains evaluations behind the stage."""
    words = ["harness", "run", "--scale", options.scale, "--methods", options.method]
    words += ["--weights", f"{options.method}=sha256:{task.sha256}"]
    words += ["--schedule", options.schedule] if options.schedule else []
    words += [word for change in options.changes for word in ("--set", change)]
    words += ["--store", str(options.store)] if options.store != Path("runs") else []
    return shlex.join(words)


def take_out(options: argparse.Namespace) -> int:
    """Writes the encoder of a finished pretrain stage as one file, and says how to load it."""
    folder = Store(options.store).match(options.key)
    if folder.parent.name != "pretrain" or not (folder / "encoder.json").exists():
        raise InputError(f"{folder}: no finished pretraining, so there is no encoder")
    about = read_exported(folder)
    path = options.out or Path(f"{folder.name}-{options.format}.safetensors")
    export_encoder(folder, path, options.format)
    print(path)
    if options.format == "timm":
        words = [repr(about.model)]
        words += [f"{name}={value!r}" for name, value in about.arguments.items()]
        words.append(f"checkpoint_path={str(path)!r}")
        print(f"timm.create_model({', '.join(words)})", file=sys.stderr)
    return 0
