"""One pass over a study: a parent run per row, a child run per stage, each made level."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from harness.report.source import Source
from harness.tracking import record
from harness.tracking.artifacts import Artifacts
from harness.tracking.record import StageView
from harness.tracking.runs import ENDED, Run, Runs
from harness.tracking.server import VIEW, artifact_location
from methods.errors import InputError
from methods.values import fingerprint

PARENT = "mlflow.parentRunId"
Row = Mapping[str, Any]


class Levelling:
    """Holds a plan against MLflow. `view` reads a stage's files, None where there is no stage."""

    def __init__(
        self,
        plan: Mapping[str, Any],
        runs: Runs,
        view: Callable[[str], StageView | None],
        artifacts: Artifacts,
        root: Path,
        uri: str,
    ) -> None:
        self.plan, self.runs, self.view, self.artifacts = plan, runs, view, artifacts
        self.study, self.scale = str(plan["study"]["name"]), str(plan["study"]["scale"])
        self.damage = ""
        self.parents: list[Run] = []
        name = f"{self.study}-{self.scale}"
        place = artifact_location(root, uri, name)
        self.experiment = runs.experiment(name, place, experiment_tags(plan, runs.store))

    @property
    def error(self) -> str:
        """What could not be done, "" where everything was."""
        return self.damage or self.artifacts.error

    def run(self, keys: Collection[str] | None = None) -> None:
        """Makes the study level, or of it only the stages with these keys and their rows' runs."""
        views: dict[str, StageView] = {}
        parents = []
        for order, row in enumerate(self.plan["rows"]):
            wanted = [key for key in lineage(self.plan, row) if keys is None or key in keys]
            if not wanted:
                continue
            parents.append((row, self.parent(order, row)))
            for key in wanted:
                if key not in views and (view := self.read(key)) is not None:
                    views[key] = view
                    self.child(view, parents[-1][1])
        if keys is None:
            for row, parent in parents:
                self.close(row, parent, views)
            self.parents = [parent for _, parent in parents]
            self.retire({parent.id for parent in self.parents})

    def report(self, source: Source) -> None:
        """The study's report, with its first row's run; not while something runs or waits."""
        alive = any(each.status not in ENDED for each in self.parents)
        if self.parents and not alive:
            self.artifacts.report(self.parents[0], source, self.study, self.scale)

    def read(self, key: str) -> StageView | None:
        """A stage's view; a damaged file is reported and the other stages go on."""
        try:
            return self.view(key)
        except InputError as error:
            self.damage = self.damage or str(error)
            return None

    def parent(self, order: int, row: Row) -> Run:
        """The row's own run. It is known by what the row is, not by where it stands."""
        key = row_key(self.plan, row)
        run = self.runs.by_key.get(key)
        if run is None:
            view = self.read(next(iter(row["stages"].values())))
            started = record.started_ms(view) if view else 0
            tags = {"level": "row"}
            run = self.runs.create(self.experiment, key, str(row["label"]), tags, started)
        needs = {key: self.plan["stages"].get(key, {}) for key in lineage(self.plan, row)}
        tags = {
            "study": self.study,
            "scale": self.scale,
            "planned": "true",
            **{name: str(row[name]) for name in ("method", "variant", "seed", "label")},
            "changed": ", ".join(f"{k}={v}" for k, v in (row.get("changed") or {}).items())[:4000],
            **record.long_tag("row", {"order": order, "row": dict(row), "stages": needs}),
        }
        self.runs.describe(run, tags, self.row_params(row))
        return run

    def row_params(self, row: Row) -> dict[str, str]:
        """The method's fields; for a row that is not pretrained its encoder's."""
        first = "pretrain" if "pretrain" in row["stages"] else next(iter(row["stages"]))
        view = self.read(row["stages"][first])
        if view is None:
            return {}
        task = view.stage.get("task") or {}
        return record.params(task if first == "pretrain" else {"encoder": task.get("encoder")})

    def child(self, view: StageView, parent: Run) -> None:
        """The stage's run, wherever it was first made, made level with its files."""
        run = self.runs.by_key.get(view.key)
        if run is not None and not self.runs.agrees(run, view.points):
            self.runs.replace(run)
            run = None
        if run is None:
            tags = {PARENT: parent.id, "study": self.study, "scale": self.scale}
            started = record.started_ms(view)
            run = self.runs.create(self.experiment, view.key, view.name, tags, started)
        self.runs.rename(run, view.name)
        known = {each.id for each in self.runs.by_key.values()}
        home = run.tags[PARENT] if run.tags.get(PARENT) in known else parent.id
        tags = record.stage_tags(view, run.tags["study"], run.tags["scale"])
        self.runs.describe(run, {**tags, PARENT: home}, record.params(view.stage.get("task") or {}))
        self.runs.forward(run, view.points)
        ended = record.finished_ms(view)
        self.runs.log_results(run, {**record.results(view), **record.cost(view)}, ended)
        self.artifacts.write(run, view)
        self.runs.set_status(run, record.status(view)[0], ended)

    def close(self, row: Row, parent: Run, views: Mapping[str, StageView]) -> None:
        """The row's results, the runs that it uses, and its status."""
        keys = lineage(self.plan, row)
        mine = [views[key] for key in keys if key in views]
        uses: dict[str, list[str]] = {}
        for view in mine:
            uses.setdefault(f"run.{view.kind}", []).append(self.runs.by_key[view.key].id)
        self.runs.describe(parent, {name: ",".join(ids) for name, ids in uses.items()}, {})
        ended = max((record.finished_ms(view) for view in mine), default=0)
        self.runs.log_results(parent, record.row_metrics(mine), ended)
        lacking = ["KILLED"] if len(mine) < len(keys) else []
        status = record.row_status([*(record.status(view)[0] for view in mine), *lacking])
        self.runs.set_status(parent, status, ended)

    def retire(self, current: Collection[str]) -> None:
        """Rows that the study no longer has stay, marked, so that no table counts them."""
        for run in self.runs.by_key.values():
            mine = run.tags.get("study") == self.study and run.tags.get("scale") == self.scale
            if mine and run.tags.get("level") == "row" and run.id not in current:
                self.runs.describe(run, {"planned": "false"}, {})


def lineage(plan: Mapping[str, Any], row: Row) -> list[str]:
    """The keys of a row's stages and of all that they need, what is needed first."""
    found: dict[str, None] = {}

    def add(key: str) -> None:
        for needed in (plan["stages"].get(key, {}).get("needs") or {}).values():
            add(needed)
        found.setdefault(key)

    for key in row["stages"].values():
        add(key)
    return list(found)


def row_key(plan: Mapping[str, Any], row: Row) -> str:
    """What a row is known by. A study may gain evaluations without its rows becoming others."""
    names = ("method", "variant", "seed")
    subject = row["stages"].get("pretrain") or row.get("encoder", "")
    study = {name: plan["study"][name] for name in ("name", "scale")}
    return f"row-{fingerprint({**study, **{name: row[name] for name in names}, 'of': subject})}"


COLUMNS = (
    *(f"metrics.`{name}`" for name in ("lin/top1", "ft/top1", "seg/mIoU", "knn/top1")),
    *(f"metrics.`{name}`" for name in ("cost/seconds", "cost/images")),
    *("tags.`stage`", "tags.`changed`"),
)


def shared_view() -> str:
    """The state of MLflow's page of runs that shows results and cost, as its Share saves one.

    A version of MLflow that knows no such state shows its own columns.
    """
    state = {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": list(COLUMNS),
    }
    return json.dumps(state)


def experiment_tags(plan: Mapping[str, Any], store: str) -> dict[str, str]:
    """What the experiment says of the study, and what a report needs to know beside the rows.

    Several people may mirror their stores to one experiment: `store` is who did so last.
    """
    study, first = plan["study"], next((row["label"] for row in plan["rows"]), "")
    note = f"{study.get('title') or study['name']}, scale {study['scale']}"
    rest = {name: value for name, value in plan.items() if name not in ("rows", "stages")}
    return {
        "harness": "yes",
        "store": store,
        "study": str(study["name"]),
        "scale": str(study["scale"]),
        "mlflow.experimentKind": "custom_model_development",
        f"mlflow.sharedViewState.{VIEW}": shared_view(),
        "mlflow.note.content": f"{note}; report.html is among the artifacts of the run {first}",
        **record.long_tag("plan", rest),
    }
