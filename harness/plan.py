"""The plan: a study and a scale turned into rows of stages, equal stages once."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import methods
from harness.stage import EVALUATIONS, Stage, task_class
from harness.study import REFERENCE_EVALS, Scale, Study, StudyRow, evaluations
from methods.errors import InputError
from methods.pretrain import ImportedEncoder, Pretraining
from methods.teachers import PretrainedEncoder
from methods.values import by_type, did_you_mean, inputs_of, to_plain, with_fields

FROZEN = ("teacher", "tokenizer")
SET_KINDS = ("pretrain", *FROZEN, *EVALUATIONS)


@dataclass(frozen=True)
class Row:
    """One row of the tables: a method (or reference), its variant and seed, and its stages."""

    method: str
    variant: str
    seed: int
    changed: Mapping[str, Any]
    stages: Mapping[str, Stage]
    value: Any = None  # the Method as it runs; None for a reference row

    @property
    def label(self) -> str:
        """`milan-s0`, or `milan-pixels-s0` with a variant."""
        words = [self.method, *self.variant.split(), f"s{self.seed}"]
        return "-".join("".join(c for c in word if c.isalnum() or c in "._+") for word in words)

    @property
    def imported(self) -> bool:
        """Whether the encoder comes from a released checkpoint."""
        pretrain = self.stages.get("pretrain")
        return pretrain is not None and isinstance(pretrain.task, ImportedEncoder)

    @property
    def encoder(self) -> Any:
        """The encoder's value."""
        if self.value is not None:
            return self.value.encoder
        return next(iter(self.stages.values())).task.encoder


@dataclass(frozen=True)
class Plan:
    """Rows, and every stage once, parents before children."""

    study: Study
    scale: Scale
    rows: tuple[Row, ...]
    stages: Mapping[str, Stage] = field(default_factory=dict)

    def owner(self, stage: Stage) -> Row:
        """The row whose own stage it is, or else the first that needs it."""
        return self._owners[stage.key]

    @functools.cached_property
    def _owners(self) -> Mapping[str, Row]:
        found: dict[str, Row] = {}
        for row in self.rows:
            for mine in row.stages.values():
                found.setdefault(mine.key, row)
        for row in self.rows:
            for mine in row.stages.values():
                for each in mine.lineage():
                    found.setdefault(each.key, row)
        return found

    def records(self) -> dict[str, Any]:
        """The content of runs/studies/<name>.json."""
        return {
            "format": 1,
            "study": {
                "name": self.study.name,
                "title": self.study.title,
                "scale": self.scale.name,
                "note": self.scale.note,
                "evals": list(self.study.evals),
                "seeds": list(self.study.seeds),
                "claims": [to_plain(claim) for claim in self.study.claims],
            },
            "rows": [_row_record(row) for row in self.rows],
            "stages": {
                key: {
                    "kind": stage.kind,
                    "label": stage.label,
                    "needs": {role: needed.key for role, needed in stage.needs.items()},
                }
                for key, stage in self.stages.items()
            },
        }


def _row_record(row: Row) -> dict[str, Any]:
    return {
        "method": row.method,
        "variant": row.variant,
        "seed": row.seed,
        "label": row.label,
        "changed": dict(row.changed),
        "encoder": row.encoder.describe(),
        "decoder": row.value.decoder.describe() if row.value else "",
        "target": row.value.describe_target() if row.value else "",
        "epochs": row.value.optimisation.epochs if row.value and not row.imported else 0,
        "stages": {kind: stage.key for kind, stage in row.stages.items()},
    }


def make_plan(study: Study, scale: Scale, changes: Mapping[str, Any] | None = None) -> Plan:
    """The plan of `study` at `scale`, with `changes` (dotted field to value) made to every row.

    Raises InputError naming the study's row, the scale's table or the --set that does not fit.
    """
    builder = _Builder(study, scale, changes or {})
    rows = [builder.row(row, seed) for row in study.all_rows() for seed in study.seeds]
    rows += [builder.reference(name, seed) for name in study.references for seed in study.seeds]
    rows = [row for row in rows if row.stages]
    stages: dict[str, Stage] = {}
    for row in rows:
        for stage in row.stages.values():
            for each in stage.lineage():
                stages.setdefault(each.key, each)
    return Plan(study, scale, tuple(rows), stages)


class _Builder:
    """Makes rows; remembers the frozen networks' stages, which rows share."""

    def __init__(self, study: Study, scale: Scale, changes: Mapping[str, Any]) -> None:
        self.study, self.scale, self.changes = study, scale, changes
        self.frozen: dict[str, Stage] = {}
        self.above: list[str] = []
        self.known: dict[tuple[str, Any], Any] = {}

    def row(self, row: StudyRow, seed: int) -> Row:
        where = f"study {self.study.name}, row {row.method}"
        schedule = schedule_of(row, where)
        changed = {**schedule, **self.study.set, **row.set, **self.changes}
        task = self.pretraining(row.method, seed, changed, where)
        task = replace(task, milestones=(*task.milestones, *row.milestones))
        method = task.method
        label = Row(row.method, row.variant, seed, row.set, {}).label
        if row.weights:
            pretrain = Stage("pretrain", label, imported_encoder(row, method, where))
        else:
            needs = {role: self.frozen_stage(role, changed, where) for role in method.needs}
            pretrain = Stage("pretrain", label, task, needs)
        stages = {"pretrain": pretrain}
        published = methods.evaluations(row.method)
        for name, (kind, share) in evaluations(self.study, row).items():
            task = self.evaluation(kind, method.encoder, seed, changed, where, published)
            task = task if share == 1 else replace(task, milestone=share)
            own = label if share == 1 else f"{label}-at{100 * share:g}"
            stages[name] = Stage(kind, own, task, {"encoder": pretrain})
        return Row(row.method, row.variant, seed, row.set, stages, method)

    def reference(self, name: str, seed: int) -> Row:
        changed = {**self.study.set, **self.changes}
        where = f"study {self.study.name}, reference {name}"
        label = f"{name}-s{seed}"
        stages: dict[str, Stage] = {}
        for kind in self.study.evals:
            if kind in REFERENCE_EVALS[name]:
                task = self.evaluation(kind, self.scale.reference, seed, changed, where, {})
                stages[kind] = Stage(kind, label, task)
        return Row(name, "", seed, {}, stages)

    def pretraining(
        self, name: str, seed: int, changed: Mapping[str, Any], where: str
    ) -> Pretraining:
        """The method's recipe with the row's parts, then the scale over it, then the row's fields.

        A part that the row swaps in comes before the scale, to be scaled like the others; then all
        of its changes, since a field that it names wins over the scale.
        """
        own = changes_for("pretrain", changed, where)
        parts = {path: new for path, new in own.items() if isinstance(new, dict) and "type" in new}
        task = Pretraining(method=methods.get(name), data=self.scale.data, seed=seed)
        task = self.scaled("pretrain", with_fields(task, parts, where))
        task = with_fields(task, own, where)
        try:
            task.check()
        except (ValueError, ArithmeticError) as error:
            raise InputError(f"{where}: {error}") from None
        return task

    def evaluation(
        self,
        kind: str,
        encoder: Any,
        seed: int,
        changed: Mapping[str, Any],
        where: str,
        published: Mapping[str, Mapping[str, Any]],
    ) -> Any:
        cls = task_class(kind)
        data = self.scale.segmentation_data if kind == "segmentation" else self.scale.data
        task = cls(encoder=encoder, data=data, seed=seed)
        task = with_fields(task, published.get(kind, {}), f"{where}, published {kind} protocol")
        own = changes_for(kind, changed, where)
        return with_fields(self.scaled(kind, task), own, f"{where}.{kind}")

    def scaled(self, kind: str, task: Any) -> Any:
        """The task with the scale over it; tasks that differ in the seed alone are scaled once."""
        if "seed" in self.scale.tasks.get(kind, {}):
            return self._scaled(kind, task)
        known = kind, replace(task, seed=0)
        if known not in self.known:
            self.known[known] = self._scaled(*known)
        return replace(self.known[known], seed=task.seed)

    def _scaled(self, kind: str, task: Any) -> Any:
        where = f"scale {self.scale.name}"
        task = by_type(task, self.scale.parts, f"{where}, parts")
        task = with_fields(task, self.scale.tasks.get(kind, {}), f"{where}, tasks.{kind}")
        return _with_threads(task, self.scale.threads)

    def frozen_stage(self, role: str, changed: Mapping[str, Any], where: str) -> Stage:
        """The teacher or tokenizer that the scale has under the name `role`, with what it needs.

        Rows whose changes make the same of it get the same stage.
        """
        kind = "tokenizer" if role in self.scale.tokenizers else "teacher"
        known: dict[str, Any] = {**self.scale.teachers, **self.scale.tokenizers}
        if role not in known:
            hint = did_you_mean(role, known)
            raise InputError(f"{where}: scale {self.scale.name} has no teacher {role!r}{hint}")
        if role in self.above:
            told = " is taught by ".join((*self.above, role))
            raise InputError(f"scale {self.scale.name}, {kind}s.{role}: {told}")
        task = _with_threads(known[role], self.scale.threads)
        task = with_fields(task, changes_for(kind, changed, where), f"{where}.{kind}")
        self.above.append(role)
        if isinstance(task, PretrainedEncoder):
            stage = self.pretrained(role, task, changed)
        else:
            needs = {each: self.frozen_stage(each, changed, where) for each in task.needs}
            stage = Stage(kind, role, task, needs)
        self.above.pop()
        return self.frozen.setdefault(stage.key, stage)

    def pretrained(
        self, role: str, teacher: PretrainedEncoder, changed: Mapping[str, Any]
    ) -> Stage:
        """The pretraining that stands for a teacher; of a row's changes it knows its teachers'."""
        where = f"scale {self.scale.name}, teachers.{role}"
        with inputs_of(where):
            methods.get(teacher.method)
        below = {path: plain for path, plain in changed.items() if path.split(".")[0] in FROZEN}
        task = self.pretraining(teacher.method, teacher.seed, {}, where)
        needs = {each: self.frozen_stage(each, below, where) for each in task.method.needs}
        return Stage("pretrain", f"{teacher.method}-s{teacher.seed}", task, needs)


def schedule_of(row: StudyRow, where: str) -> Mapping[str, Any]:
    """The changes that the row's schedule makes; InputError where the method has none such."""
    known = methods.schedules(row.method)
    if row.schedule and row.schedule not in known:
        hint = did_you_mean(row.schedule, known) or " (it has none)"
        raise InputError(f"{where}: schedule: {row.method} has no {row.schedule!r}{hint}")
    return known[row.schedule] if row.schedule else {}


def imported_encoder(row: StudyRow, method: Any, where: str) -> ImportedEncoder:
    """The stage's task for the row's released checkpoint, which is known by its content."""
    from methods.released import digest

    word, _, sha256 = row.weights.partition(":")
    path = ""
    if word == "sha256" and not re.fullmatch("[0-9a-f]{64}", sha256):
        raise InputError(f"{where}: weights: {row.weights[:80]!r} has not 64 hexadecimal digits")
    if word != "sha256":
        path = str(Path(row.weights).absolute())
        try:
            sha256 = digest(Path(path))
        except (OSError, ValueError) as error:
            told = f"{where}: weights: {row.weights!r} cannot be read ({error})"
            raise InputError(told) from None
    statistics = method.augmentation.statistics
    return ImportedEncoder(method.name, method.encoder, sha256, statistics, path)


def _with_threads(task: Any, threads: int) -> Any:
    has = any(each.name == "threads" for each in fields(task))
    return replace(task, threads=threads) if threads and has else task


def changes_for(kind: str, changes: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """The changes that concern tasks of `kind`.

    `finetune.optimisation.epochs` is a field of that stage kind's task; a path that starts with no
    kind is a field of the method, and so of pretraining. Raises InputError for what a row is called
    by: tables would go on to show the seed and the method that it had. where: of whom, for that.
    """
    found = {}
    for path, plain in changes.items():
        first, _, rest = path.partition(".")
        if first in SET_KINDS and rest:
            if first == kind:
                found[rest] = plain
        elif kind == "pretrain":
            found[f"method.{path}"] = plain
    if "seed" in found and kind not in FROZEN:
        told = "cannot be set; seeds are the study's (--seeds 0,1,2)"
        raise InputError(f"{where}.{kind}.seed: {told}")
    if "method.name" in found:
        raise InputError(f"{where}.method.name: cannot be set; a method is named by its file")
    return found
