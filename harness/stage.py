"""A stage: a task and the stages it needs, under a key of all that can change its numbers."""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from methods.errors import InputError
from methods.values import did_you_mean, fingerprint, from_plain, inputs_of, to_plain

KINDS = {
    "teacher": "methods.teachers:Teacher",
    "tokenizer": "methods.teachers:Tokenizer",
    "pretrain": "methods.pretrain:EncoderTask",
    "linear": "evals.linear:LinearProbe",
    "finetune": "evals.finetune:FineTuning",
    "segmentation": "evals.segmentation:Segmentation",
    "knn": "evals.knn:NearestNeighbours",
    "smoke": "harness.smoke:Smoke",
}
EVALUATIONS = ("linear", "finetune", "segmentation", "knn")


def task_class(kind: str) -> type[Any]:
    """The value class of the tasks of `kind`, without importing torch."""
    if kind not in KINDS:
        raise InputError(f"no stage kind is called {kind!r}{did_you_mean(kind, KINDS)}")
    module, name = KINDS[kind].split(":")
    found: type[Any] = getattr(importlib.import_module(module), name)
    return found


@dataclasses.dataclass(frozen=True)
class Stage:
    """One node of the plan. `label` is for people and is not in the key.

    task: a frozen value with all that can change the numbers; its `run(work)` does the work.
    """

    kind: str
    label: str
    task: Any
    needs: Mapping[str, Stage] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        # It becomes the name of a folder, and of a job.
        if not self.label or any(not (c.isalnum() or c in "-._+@ ") for c in self.label):
            raise InputError(
                f"a stage cannot be called {self.label!r}: letters, digits, blanks, - . _ + @"
            )
        if getattr(self.task, "threads", 0) < 0:
            told = f"must be 0 (torch decides) or more, not {self.task.threads}"
            raise InputError(f"{self.label}: {self.kind}.threads: {told}")
        if len(self.label.encode()) > 200:
            raise InputError(f"a stage cannot be called {self.label[:20]!r}...: 200 bytes at most")

    @functools.cached_property
    def key(self) -> str:
        """10 hexadecimal digits over kind, version, task without defaults, and the needs' keys."""
        return fingerprint(self.identity())

    def identity(self) -> dict[str, Any]:
        """What the key is made of."""
        return {
            "kind": self.kind,
            "version": self.task.version,
            "task": to_plain(self.task, sparse=True),
            "needs": {role: stage.key for role, stage in self.needs.items()},
        }

    @property
    def name(self) -> str:
        """The folder's name, and the job's."""
        return f"{self.label}-{self.key}"

    @property
    def path(self) -> str:
        """`kind/name`, as people see it."""
        return f"{self.kind}/{self.name}"

    def lineage(self) -> Iterator[Stage]:
        """The stages this one needs, the first to run first, and then itself."""
        for needed in self.needs.values():
            yield from needed.lineage()
        yield self


def stage_record(stage: Stage, about: Mapping[str, Any]) -> dict[str, Any]:
    """The content of stage.json: the whole task with its defaults, and what people want to know."""
    return {
        "format": 1,
        "key": stage.key,
        "kind": stage.kind,
        "version": stage.task.version,
        "label": stage.label,
        "task": to_plain(stage.task),
        "needs": {role: needed.key for role, needed in stage.needs.items()},
        **about,
    }


def task_from_record(record: Mapping[str, Any], where: str) -> Any:
    """The task in a stage.json that was read from `where`. Raises InputError naming the field."""
    kind = record.get("kind")
    if not isinstance(kind, str):
        raise InputError(f"{where}: kind: missing or not a string")
    if "task" not in record:
        raise InputError(f"{where}: task: missing")
    with inputs_of(where):
        cls = task_class(kind)
    return from_plain(cls, record["task"], f"{where}: task")
