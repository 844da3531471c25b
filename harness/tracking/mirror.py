"""Brings MLflow level with the store for one study: what is missing is made, what lies is put right."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.report.source import StoreSource
from harness.store import Store
from harness.tracking import record
from harness.tracking.artifacts import Artifacts
from harness.tracking.record import StageView
from harness.tracking.runs import Run, Runs
from harness.tracking.server import (
    artifact_location,
    check_uri,
    connect,
    default_uri,
    without_secrets,
    writing,
)
from methods.errors import InputError
from methods.values import fingerprint

log = logging.getLogger(__name__)
PARENT = "mlflow.parentRunId"


@dataclass(frozen=True)
class Summary:
    """What one pass did. `error` says why MLflow is not level; "" where it is."""

    runs: int = 0
    written: int = 0
    error: str = ""

    def __add__(self, other: Summary) -> Summary:
        error = self.error or other.error
        return Summary(self.runs + other.runs, self.written + other.written, error)

    def __str__(self) -> str:
        if self.error:
            return f"MLflow is behind: {self.error} (`harness sync` makes it level)"
        return f"MLflow is level: {self.runs} runs, {self.written} changes"


class Mirror:
    """One study's mirror. It may be kept and asked again: a pass costs what has changed.

    uri: http(s)://... or sqlite:///FILE (the store's own file by default). state: what a stage
    is, by key, where the files cannot say; as in StoreSource. Raises InputError for the address.
    """

    def __init__(
        self,
        store: Store,
        study: str,
        uri: str | None = None,
        state: Callable[[str], str] | None = None,
        scale: str | None = None,
    ) -> None:
        self.root, self.study, self.scale = store.root, study, scale
        self.uri = check_uri(uri or default_uri(store.root))
        self._store, self._state = store, state
        self._runs: Runs | None = None
        self._views: dict[str, tuple[object, StageView]] = {}
        self._warned = False

    def once(self, keys: Collection[str] | None = None) -> Summary:
        """One pass, over the whole study or these stages alone.

        Never raises for MLflow's sake: a server that is away is warned of once and asked again by
        the next pass. Raises InputError where the store has no such study.
        """
        plan = StoreSource(self.root).plan(self.study, self.scale)
        try:
            with writing(self.root, self.uri):
                summary = _Pass(self, plan, self._open()).run(keys)
        except InputError:
            raise
        # Whatever goes wrong between here and a server belongs to the server: training goes on.
        except Exception as error:
            self._runs = None  # what was last written is unknown
            summary = Summary(error=_one_line(error))
        if summary.error and not self._warned:
            self._warned = True
            log.warning("%s", summary)
        return summary

    def _open(self) -> Runs:
        if self._runs is None:
            runs = Runs(connect(self.uri), store_id(self.root))
            runs.read()
            self._runs = runs
        self._runs.written = 0
        return self._runs

    def view(self, key: str) -> StageView | None:
        """What the files say of a stage; read again only when one of them has changed."""
        folder = self._store.find(key)
        if folder is None or not (folder / "stage.json").exists():
            return None
        source = StoreSource(self.root, self._state)
        source.store = self._store
        outcome = source.outcome(key)
        seen = (outcome, *_stamps(folder))
        known = self._views.get(key)
        if known is not None and known[0] == seen:
            return known[1]
        points = tuple(record.points(source.history(key)))
        jobs = tuple(self._store.attempts(folder))
        view = StageView(key, source.stage(key), outcome, jobs, points, folder)
        self._views[key] = (seen, view)
        return view


class _Pass:
    """One pass over one plan."""

    def __init__(self, mirror: Mirror, plan: Mapping[str, Any], runs: Runs) -> None:
        self.mirror, self.plan, self.runs = mirror, plan, runs
        self.study, self.scale = str(plan["study"]["name"]), str(plan["study"]["scale"])
        name = f"{self.study}-{self.scale}"
        location = artifact_location(mirror.root, mirror.uri, name)
        self.experiment = runs.experiment(name, location, experiment_tags(plan))
        self.artifacts = Artifacts(runs.client, mirror.root)
        self.damage = ""

    def run(self, keys: Collection[str] | None) -> Summary:
        rows = [row for row in self.plan["rows"] if keys is None or self.lineage(row) & set(keys)]
        for order, row in enumerate(self.plan["rows"]):
            if row in rows:
                self.parent(order, row)
        views = {key: view for key in self.plan["stages"] if (view := self.safe_view(key))}
        for row in rows:
            for key in self.plan["stages"]:
                if key in self.lineage(row) and key in views and (keys is None or key in keys):
                    self.child(row, views.pop(key) if keys is not None else views[key])
        if keys is None:
            for row in rows:
                self.close(row, views)
            self.retire(rows)
        error = self.damage or self.artifacts.error
        return Summary(len(self.runs.by_key), self.runs.written, error)
