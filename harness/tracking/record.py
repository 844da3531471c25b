"""What MLflow is to hold, worked out from the store's files: names, tags, metrics, statuses."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.report import records
from harness.tracking.server import without_secrets

SHORT = {**records.SHORT, **{kind: kind for kind in ("teacher", "tokenizer", "pretrain")}}
# MLflow hides tags of this prefix from its pages; they carry what `report --source mlflow` reads.
HIDDEN = "mlflow.harness."
PARAM_LENGTH = 6000
TAG_LENGTH = 4500  # servers differ: 5000 or 8000
SYSTEM = "system/"  # MLflow shows the metrics under this prefix on a page of their own
SHARED = ("teacher", "tokenizer")
SUMMED = ("seconds", "images", "gflops", "kwh")


@dataclass(frozen=True)
class Point:
    """One line of metrics.jsonl. `time` is in milliseconds, as MLflow's timestamps are."""

    step: int
    time: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class StageView:
    """What the files say of one stage. `outcome` has outcome.json's content and the `state`."""

    key: str
    stage: Mapping[str, Any]
    outcome: Mapping[str, Any]
    jobs: tuple[Mapping[str, Any], ...] = ()
    points: tuple[Point, ...] = ()
    folder: Path = field(default_factory=Path)

    @property
    def kind(self) -> str:
        return str(self.stage["kind"])

    @property
    def name(self) -> str:
        """As MLflow's pages show it: `linear milan-s0-1f0c3a9b27`."""
        return f"{self.kind} {self.stage.get('label', self.kind)}-{self.key}"


def flatten(plain: Any, prefix: str = "") -> dict[str, str]:
    """Dotted fields of nested plain data; a part's `type` becomes the value of the part itself.

    {"loss": {"type": "Cosine", "weight": 1}} gives loss=Cosine and loss.weight=1.
    """
    if isinstance(plain, Mapping) and plain:
        pairs: Iterable[tuple[Any, Any]] = plain.items()
    elif isinstance(plain, list | tuple) and plain:
        pairs = enumerate(plain)
    else:
        return {prefix: plain if isinstance(plain, str) else json.dumps(plain)}
    found: dict[str, str] = {}
    for name, value in pairs:
        path = prefix if name == "type" and prefix else f"{prefix}.{name}".lstrip(".")
        found.update(flatten(value, path))
    return found


def params(task: Mapping[str, Any]) -> dict[str, str]:
    """Every field of a task as MLflow's parameters; a method's own stand without `method.`."""
    rest = {name: value for name, value in task.items() if name != "method"}
    method = task.get("method")
    both = {**flatten(rest), **flatten(method if isinstance(method, Mapping) else {})}
    # "type" is the task's own class, which the tag `stage` tells; "" is an empty task.
    named = {name: value for name, value in both.items() if name not in ("", "type")}
    return {metric_name(name): value[:PARAM_LENGTH] for name, value in named.items()}


def metric_name(name: str) -> str:
    """`name` with what MLflow refuses in names (such as @) replaced."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:250]


def long_tag(name: str, value: Any) -> dict[str, str]:
    """`value` as JSON in as many hidden tags as its length needs."""
    text = without_secrets(json.dumps(value))  # in its own order, which a report keeps
    pieces = [text[at : at + TAG_LENGTH] for at in range(0, len(text), TAG_LENGTH)]
    return {f"{HIDDEN}{name}.{number}": piece for number, piece in enumerate(pieces)} | {
        f"{HIDDEN}{name}": str(len(pieces))
    }


def read_long_tag(name: str, tags: Mapping[str, str]) -> Any:
    """What `long_tag` wrote, or None."""
    try:
        count = int(tags.get(f"{HIDDEN}{name}", 0))
        pieces = [tags.get(f"{HIDDEN}{name}.{number}", "") for number in range(count)]
        return json.loads("".join(pieces))
    except ValueError:
        return None


def points(history: Iterable[Mapping[str, Any]]) -> Iterator[Point]:
    """The points of metrics.jsonl's lines; damaged lines are left out."""
    for line in history:
        step, time = line.get("step"), line.get("time")
        if isinstance(step, int) and isinstance(time, int | float) and math.isfinite(time):
            yield Point(step, round(time * 1000), numbers(line, without=("step", "time")))


def is_curve(name: str) -> bool:
    """Whether a metric is one of metrics.jsonl's, not a result such as lin/top1."""
    return "/" not in name or name.startswith(SYSTEM)


def numbers(record: Any, prefix: str = "", without: Iterable[str] = ()) -> dict[str, float]:
    """The numeric fields of `record` under their MLflow names."""
    pairs = record.items() if isinstance(record, Mapping) else ()
    return {
        metric_name(f"{prefix}{name}"): float(value)
        for name, value in pairs
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in without
    }


def results(view: StageView) -> dict[str, float]:
    """A stage's final metrics, such as lin/top1; empty until it is done."""
    if view.outcome.get("state") != "done":
        return {}
    return numbers(view.outcome.get("metrics"), f"{SHORT[view.kind]}/")


def cost(view: StageView) -> dict[str, float]:
    """What a stage cost, as cost/seconds and so on, also where it failed."""
    return numbers(view.outcome.get("cost"), "cost/")


def row_metrics(views: Iterable[StageView]) -> dict[str, float]:
    """A row's results, and its cost summed over its own stages: shared ones are not counted.

    A result before the end of pretraining is called after its milestone: at50/lin/top1.
    """
    found: dict[str, float] = {}
    for view in views:
        if view.kind in SHARED:
            continue
        share = (view.stage.get("task") or {}).get("milestone", 1)
        place = "" if share == 1 else f"at{100 * share:g}/"
        found.update({f"{place}{name}": value for name, value in results(view).items()})
        for name, value in cost(view).items():
            if name.removeprefix("cost/") in SUMMED:
                found[name] = round(found.get(name, 0.0) + value, 6)
    return found


def finished_ms(view: StageView) -> int:
    """When the stage ended or was last heard of, in milliseconds; 0 where nothing is known."""
    finished = view.outcome.get("finished")
    if isinstance(finished, int | float) and finished > 0:
        return round(finished * 1000)
    return view.points[-1].time if view.points else started_ms(view)


def started_ms(view: StageView) -> int:
    """When the stage was first submitted or heard of, in milliseconds; 0 where nothing is known."""
    times = [round(1000 * job["submitted"]) for job in view.jobs[:1] if _is_time(job)]
    return min([*times, *(point.time for point in view.points[:1])], default=0)


def _is_time(job: Mapping[str, Any]) -> bool:
    return isinstance(job.get("submitted"), int | float)


def status(view: StageView) -> tuple[str, str]:
    """MLflow's status and the tag end_reason. What ended never looks alive, nor a failure done."""
    state = view.outcome.get("state", "missing")
    if state == "done":
        return "FINISHED", "done"
    if state == "failed":
        reason = str((view.outcome.get("error") or {}).get("reason", "code"))
        return ("KILLED" if reason == "stopped" else "FAILED"), reason
    if state in ("running", "queued"):
        return {"running": "RUNNING", "queued": "SCHEDULED"}[state], ""
    if state == "blocked":
        return "KILLED", "needs"
    stopped = str(view.jobs[-1].get("stopped", "")) if view.jobs else ""
    if stopped:
        return "KILLED", without_secrets(stopped)[:200]
    return "KILLED", "killed" if view.points else "not run"


def row_status(statuses: Iterable[str]) -> str:
    """A row's status from its stages': alive if one is, finished only if all are."""
    found = set(statuses)
    for each in ("RUNNING", "SCHEDULED", "FAILED", "KILLED"):
        if each in found:
            return each
    return "FINISHED"


def stage_tags(view: StageView, study: str, scale: str) -> dict[str, str]:
    """The tags of a stage's run, for filters and for reading tables back."""
    stage, job = view.stage, view.jobs[-1] if view.jobs else {}
    needs = stage.get("needs") or {}
    tags = {
        "level": "stage",
        "key": view.key,
        "stage": view.kind,
        "study": study,
        "scale": scale,
        **{name: str(stage.get(name, "")) for name in ("method", "variant", "seed", "label")},
        "parent_key": ",".join(str(key) for key in needs.values()),
        "commit": str(view.outcome.get("commit") or stage.get("commit") or ""),
        "dirty": str(bool(stage.get("dirty"))).lower(),
        "cluster": str(job.get("cluster") or job.get("backend") or ""),
        # Nothing else of job.json is passed on: it may hold a user's environment.
        "job_id": str(job.get("job") or job.get("job_id") or ""),
        "attempt": str(len(view.jobs)),
        "end_reason": status(view)[1],
        "resumed": str(view.outcome.get("resumed", "")),
    }
    error = view.outcome.get("error") or {}
    message = without_secrets(str(error.get("message", "")))[:TAG_LENGTH]
    tags = {name: without_secrets(value) for name, value in tags.items()}
    told = {name: value for name, value in view.outcome.items() if name != "metrics"}
    hidden = {**long_tag("outcome", told), **long_tag("stage", dict(stage))}
    return {**tags, "error": message, **hidden}
