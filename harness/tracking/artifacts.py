"""What a run holds beside numbers: files, its data set, the report; weights by name."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from harness.report.build import render
from harness.report.source import Source
from harness.stage import task_from_record
from harness.tracking.record import StageView, finished_ms
from harness.tracking.runs import Run, Runs
from harness.tracking.server import without_secrets
from methods.errors import InputError
from methods.released import digest
from methods.values import fingerprint

TASK = ("key", "kind", "version", "label", "task", "needs", "scale", "commit", "dirty")
CHECKPOINT = re.compile(r"step-\d+-([0-9a-f]{64})\.pt")


class Artifacts:
    """Writes them once. The first upload that fails is the last that is tried in a pass, since
    numbers matter more and a server may have no room for files; the next pass tries again.

    `check`: a tag that says that they are written is believed only where they are still there."""

    def __init__(self, runs: Runs, check: bool = False) -> None:
        self.runs, self.client, self.check = runs, runs.client, check
        self.error = ""

    def write(self, run: Run, view: StageView) -> None:
        """Everything that the stage has by now and the run has not."""
        self.data_sets(run, view.stage.get("task") or {})
        done = view.outcome.get("state") == "done"
        stamp = str(finished_ms(view)) if done else run.tags.get("artifacts", "task")
        if self.error:
            return
        with self._upload():
            if run.tags.get("artifacts") == stamp and not self._lost(run, *names(view, done)):
                return
            self.files(run, view, done)
            references = dict(weights(view.folder)) if done else {}
            self.runs.describe(run, {"artifacts": stamp, **references}, {})
            self.runs.written += 1

    def _lost(self, run: Run, *names: str) -> bool:
        """Whether one of these files is no longer there, if that is to be checked."""
        if not self.check:
            return False
        if run.place.startswith("file:"):  # ten thousand runs are looked through in a second
            folder = Path(url2pathname(urlsplit(run.place).path))
            return not all((folder / name).exists() for name in names)
        folders = {name.rpartition("/")[0] or None for name in names}
        found = [each for folder in folders for each in self.client.list_artifacts(run.id, folder)]
        return not {each.path for each in found}.issuperset(names)

    @contextmanager
    def _upload(self) -> Iterator[None]:
        try:
            yield
        # The kinds of failure are the artifact store's: files, S3, a proxy.
        except Exception as error:
            self.error = f"artifacts: {type(error).__name__}: {without_secrets(str(error))[:200]}"

    def files(self, run: Run, view: StageView, done: bool) -> None:
        task = {name: view.stage.get(name) for name in TASK}
        self.client.log_dict(run.id, task, "task.json")
        if (card := protocol(view.stage)) is not None:
            self.client.log_dict(run.id, card, "protocol.json")
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
        for name in copied(view.folder):
            place = name.rpartition("/")[0] or None
            self.client.log_artifact(run.id, str(view.folder / name), place)

    def report(self, run: Run, source: Source, study: str, scale: str) -> None:
        """The study's report, as a file of its first row's run; again where the study changed."""
        there = "report" in run.tags
        with self._upload():
            there = there and not self._lost(run, "report.html")
        if self.error or (there and not self.runs.written):
            return
        try:
            text = without_secrets(render(source, study, scale, "html"))
        except InputError:  # nothing to report yet
            return
        stamp = hashlib.sha256(text.encode()).hexdigest()
        if there and run.tags.get("report") == stamp:
            return
        with self._upload():
            self.client.log_text(run.id, text, "report.html")
            self.runs.describe(run, {"report": stamp}, {})
            self.runs.written += 1

    def data_sets(self, run: Run, task: Mapping[str, Any]) -> None:
        """The task's data as an MLflow data set; its digest is that of the value which names it."""
        data = task.get("data")
        if run.has_data or not isinstance(data, Mapping):
            return
        from mlflow.entities import Dataset, DatasetInput, InputTag

        value, name = dict(data), str(data.get("type", "data"))
        found = Dataset(name, fingerprint(value), "code", json.dumps({"tags": value}))
        context = InputTag("mlflow.data.context", "training")
        self.client.log_inputs(run.id, [DatasetInput(found, [context])])
        run.has_data = True
        self.runs.written += 1


def names(view: StageView, done: bool) -> list[str]:
    """Files that a run has as soon as its artifacts are written."""
    return ["task.json", "environment.json", *copied(view.folder)] if done else ["task.json"]


def copied(folder: Path) -> list[str]:
    """The stage's files that its run has as they are."""
    found = [*folder.glob("metrics.jsonl"), *sorted(folder.glob("pictures/*.png"))]
    return [path.relative_to(folder).as_posix() for path in found]


def protocol(stage: Mapping[str, Any]) -> dict[str, Any] | None:
    """An evaluation's protocol card; None for other stages, and for tasks of another version."""
    try:
        task = task_from_record(stage, "stage.json")
    except InputError:
        return None
    card = getattr(task, "protocol", None)
    return None if card is None else dict(card())


def weights(folder: Path) -> Iterator[tuple[str, str]]:
    """Tags saying where weights lie in their store, and their sha256: too large to be copied.

    `encoder.path`, `clip.path`, `tokenizer.path`, and `checkpoint.path` of the newest checkpoint.
    """
    for path in sorted(folder.glob("*.safetensors")):
        yield f"{path.stem}.path", "/".join(path.parts[-3:])
        yield f"{path.stem}.sha256", digest(path)
    named = [(path, CHECKPOINT.fullmatch(path.name)) for path in sorted(folder.glob("state/*.pt"))]
    for path, match in named[-1:]:
        if match:  # the name of a checkpoint has its checksum
            yield "checkpoint.path", "/".join(path.parts[-4:])
            yield "checkpoint.sha256", match[1]
