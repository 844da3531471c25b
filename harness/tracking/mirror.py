"""Brings MLflow level with the store for one study: makes what is missing, corrects what lies."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness.report.source import StoreSource
from harness.store import Store
from harness.tracking import record
from harness.tracking.artifacts import Artifacts
from harness.tracking.level import Levelling
from harness.tracking.moved import relocate
from harness.tracking.record import StageView
from harness.tracking.runs import Runs
from harness.tracking.server import (
    check_uri,
    connect,
    default_uri,
    identity,
    without_secrets,
    writing,
)
from methods.errors import InputError

log = logging.getLogger(__name__)


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

    uri: http(s)://... or sqlite:///FILE (the store's own file by default). `study`, `scale`: as in
    StoreSource. check: whether artifacts that were once written are looked for. Raises InputError
    for the address.
    """

    def __init__(
        self,
        store: Store,
        study: str,
        uri: str | None = None,
        scale: str | None = None,
        check: bool = False,
    ) -> None:
        self.root, self.study, self.scale = store.root, study, scale
        self.uri = check_uri(uri or default_uri(store.root))
        self._check = check
        self._runs: Runs | None = None
        self._file: tuple[int, int] | None = None  # that `_runs` was read from
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
                summary = self._pass(plan, keys)
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

    def _pass(self, plan: Mapping[str, Any], keys: Collection[str] | None) -> Summary:
        runs, source = self._open(), StoreSource(self.root)  # its Store remembers what there is
        artifacts = Artifacts(runs, self._check)
        view = partial(self._view, source)
        levelling = Levelling(plan, runs, view, artifacts, self.root, self.uri)
        levelling.run(keys)
        if keys is None:
            levelling.report(source)
        runs.current = False
        return Summary(len(runs.by_key), runs.written, levelling.error)

    def _open(self) -> Runs:
        moved = 0
        if self._runs is None or identity(self.uri) != self._file:
            runs = Runs(connect(self.uri), store_id(self.root))
            moved = relocate(self.root, self.uri)
            runs.read()
            self._runs, self._file = runs, identity(self.uri)
        self._runs.written = moved
        return self._runs

    def _view(self, source: StoreSource, key: str) -> StageView | None:
        """What the files say of a stage; read again only when one of them has changed."""
        folder = source.store.find(key)
        if folder is None or not (folder / "stage.json").exists():
            return None
        outcome = source.outcome(key)
        seen = (outcome, *_stamps(folder))
        known = self._views.get(key)
        if known is not None and known[0] == seen:
            return known[1]
        points = tuple(record.points(source.history(key)))
        jobs = tuple(source.store.attempts(folder))
        view = StageView(key, source.stage(key), outcome, jobs, points, folder)
        self._views[key] = (seen, view)
        return view


def _stamps(folder: Path) -> Iterator[tuple[str, int, int]]:
    files = [folder / "stage.json", folder / "metrics.jsonl", folder / "outcome.json"]
    for path in [*files, *sorted((folder / "attempts").glob("*/job.json"))]:
        try:
            stat = path.stat()
        except OSError:
            continue
        yield str(path), stat.st_mtime_ns, stat.st_size


def store_id(root: Path) -> str:
    """What tells this store's runs from another's on the same server; it moves with the store."""
    path = root / "store-id"
    if not path.exists():
        root.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{secrets.token_hex(6)}\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _one_line(error: Exception) -> str:
    lines = without_secrets(str(error)).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"
