"""What a run holds beside numbers: task, environment, data set, pictures; checkpoints by name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.tracking.record import StageView, finished_ms
from harness.tracking.runs import Run, Runs
from harness.tracking.server import without_secrets
from methods.values import fingerprint

TASK = ("key", "kind", "version", "label", "task", "needs", "scale", "commit", "dirty")


class Artifacts:
    """Writes them once. The first upload that fails is the last that is tried in a pass, since
    numbers matter more and a server may have no room for files; the next pass tries again."""

    def __init__(self, runs: Runs) -> None:
        self.runs, self.client = runs, runs.client
        self.error = ""

    def write(self, run: Run, view: StageView) -> None:
        """Everything that the stage has by now and the run has not."""
        self.data_set(run, view.stage.get("task") or {})
        done = view.outcome.get("state") == "done"
        stamp = str(finished_ms(view)) if done else run.tags.get("artifacts", "task")
        if self.error or run.tags.get("artifacts") == stamp:
            return
        try:
            self.files(run, view, done)
        # The kinds of failure are the artifact store's: files, S3, a proxy.
        except Exception as error:
            self.error = f"artifacts: {type(error).__name__}: {without_secrets(str(error))[:200]}"
            return
        reference = encoder_reference(view.folder) if done else {}
        self.runs.describe(run, {"artifacts": stamp, **reference}, {})

    def files(self, run: Run, view: StageView, done: bool) -> None:
        task = {name: view.stage.get(name) for name in TASK}
        self.client.log_dict(run.id, task, "task.json")
        if not done:
            return
        outcome = view.outcome
        cost = outcome.get("cost") or {}
        environment = {
            "versions": dict(outcome.get("versions") or {}),
            "commit": outcome.get("commit", ""),
            "device": cost.get("device", "") if isinstance(cost, Mapping) else "",
        }
        self.client.log_dict(run.id, environment, "environment.json")
        for path in sorted((view.folder / "pictures").glob("*.png")):
            self.client.log_artifact(run.id, str(path), "pictures")

    def data_set(self, run: Run, task: Mapping[str, Any]) -> None:
        """The task's data as an MLflow data set; its digest is that of the value which names it."""
        data = task.get("data")
        if run.has_data or not isinstance(data, Mapping):
            return
        from mlflow.entities import Dataset, DatasetInput, InputTag

        name = str(data.get("type", "data"))
        found = Dataset(name, fingerprint(dict(data)), "code", fingerprint(dict(data)))
        context = InputTag("mlflow.data.context", "training")
        self.client.log_inputs(run.id, [DatasetInput(found, [context])])
        run.has_data = True
        self.runs.written += 1


def encoder_reference(folder: Path) -> dict[str, str]:
    """Where the encoder lies in its store, and its sha256: too large to be copied."""
    path = folder / "encoder.safetensors"
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    where = "/".join(path.parts[-3:])
    return {"encoder.path": where, "encoder.sha256": digest}
