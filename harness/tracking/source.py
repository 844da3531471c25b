"""Reads a study back from MLflow alone, as the report reads it from a store."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.tracking.record import SHORT, is_curve, read_long_tag
from harness.tracking.runs import OURS, pages
from harness.tracking.server import (
    check_uri,
    connect,
    is_server,
    sqlite_file,
    without_secrets,
)
from methods.errors import InputError


class MlflowSource:
    """A report's source (harness.report.source) that needs no store, only a tracking server.

    Of several stores mirrored to one experiment it reads the one that was mirrored last.

    Raises InputError for a bad address, and where the server does not answer or has no such study.
    """

    def __init__(self, uri: str) -> None:
        self.uri = check_uri(uri)
        self._client: Any = None
        self._stages: dict[str, Any] = {}

    @property
    def client(self) -> Any:
        if not is_server(self.uri) and not sqlite_file(self.uri).is_file():
            raise InputError(f"MLflow at {self.uri}: no such file; `harness sync` makes a store's")
        if self._client is None:
            self._client = connect(self.uri)
        return self._client

    def plan(self, study: str, scale: str | None = None) -> dict[str, Any]:
        """The study's plan, put together from its rows' runs."""
        with self._asking():
            return self._plan(study, scale)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """A server may leave, or its database be damaged, in the midst of a report."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            what = " ".join(without_secrets(str(error)).splitlines()[:1])[:200]
            told = what or type(error).__name__
            raise InputError(f"MLflow at {without_secrets(self.uri)}: {told}") from None

    def _plan(self, study: str, scale: str | None) -> dict[str, Any]:
        every = pages(self.client.search_experiments, filter_string=OURS)
        found = [each for each in every if each.tags.get("study") == study]
        mine = [each for each in found if scale in (None, each.tags.get("scale"))]
        where = f"in MLflow at {without_secrets(self.uri)}"
        if len(mine) != 1:
            scales = sorted(each.tags.get("scale", "") for each in found)
            hint = f"; choose a --scale of {', '.join(scales)}" if scales else ""
            raise InputError(
                f"{'no' if not mine else 'more than one'} study {study!r} {where}{hint}"
            )
        store = f"tags.store = '{mine[0].tags.get('store', '')}'"
        runs = pages(self.client.search_runs, [each.experiment_id for each in every], store)
        self._stages = {run.data.tags["key"]: run for run in runs if _level(run) == "stage"}
        rows = [run for run in runs if _level(run) == "row" and _planned(run, mine[0].tags)]
        told = [read_long_tag("row", run.data.tags) for run in rows]
        told = sorted((each for each in told if each), key=lambda each: each["order"])
        stages = {key: value for each in told for key, value in each["stages"].items()}
        about = read_long_tag("plan", mine[0].tags) or {}
        return {**about, "rows": [each["row"] for each in told], "stages": stages}

    def outcome(self, key: str) -> Mapping[str, Any]:
        """How the stage ended; its metrics are those that MLflow shows."""
        run = self._stages.get(key)
        told = read_long_tag("outcome", run.data.tags) if run is not None else None
        if run is None or not isinstance(told, dict):
            return {"state": "missing"}
        prefix = f"{SHORT[run.data.tags['stage']]}/"
        final = run.data.metrics.items() if told.get("state") == "done" else ()
        metrics = {k.removeprefix(prefix): v for k, v in final if k.startswith(prefix)}
        return {**told, "metrics": metrics}

    def stage(self, key: str) -> Mapping[str, Any]:
        """The content of the stage's stage.json."""
        run = self._stages.get(key)
        return (read_long_tag("stage", run.data.tags) if run is not None else None) or {}

    def history(self, key: str) -> list[dict[str, Any]]:
        """The stage's curve, the lines of metrics.jsonl: a step may have several."""
        run = self._stages.get(key)
        lines: dict[tuple[int, int], dict[str, Any]] = {}
        if run is None:
            return []
        with self._asking():
            for name in filter(is_curve, run.data.metrics):
                for each in self.client.get_metric_history(run.info.run_id, name):
                    about = {"step": each.step, "time": each.timestamp / 1000}
                    lines.setdefault((each.step, each.timestamp), about)[name] = each.value
        return [lines[when] for when in sorted(lines)]

    def pictures(self, key: str) -> dict[str, bytes]:
        """The stage's PNG files by name."""
        run = self._stages.get(key)
        found: dict[str, bytes] = {}
        if run is None:
            return found
        with self._asking(), tempfile.TemporaryDirectory() as folder:
            for each in self.client.list_artifacts(run.info.run_id, "pictures"):
                path = Path(self.client.download_artifacts(run.info.run_id, each.path, folder))
                found[path.stem] = path.read_bytes()
        return found


def _level(run: Any) -> str:
    return str(run.data.tags.get("level", ""))


def _planned(run: Any, experiment: Mapping[str, str]) -> bool:
    tags = run.data.tags
    same = all(tags.get(name) == experiment[name] for name in ("study", "scale"))
    return same and tags.get("planned") == "true"
