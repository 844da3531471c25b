"""Where a report reads from: anything that has a study's plan and its stages' outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from harness.liveness import state_of
from harness.report.planned import read_plan
from harness.store import Store, read_table
from methods.engine.work import read_alarms, read_line
from methods.errors import InputError
from methods.values import did_you_mean

MISSING: Mapping[str, Any] = {"state": "missing"}


class Source(Protocol):
    """One study's record. The store has one; a tracking server can have another.

    Every method gives plain data of the formats in the store; what is not there is empty.
    """

    def plan(self, study: str, scale: str | None = None) -> dict[str, Any]:
        """The content of runs/studies/<name>.json; raises InputError where there is none."""
        ...

    def outcome(self, key: str) -> Mapping[str, Any]:
        """The content of outcome.json with `state`: done, failed, running, queued, missing."""
        ...

    def stage(self, key: str) -> Mapping[str, Any]:
        """The content of stage.json, or an empty mapping."""
        ...

    def history(self, key: str) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, the first step first."""
        ...

    def pictures(self, key: str) -> dict[str, bytes]:
        """The PNG files that the stage left for the report, by name."""
        ...


class StoreSource:
    """Reads the folder `runs/`."""

    def __init__(self, root: Path) -> None:
        self.root, self.store = root, Store(root)

    def plan(self, study: str, scale: str | None = None) -> dict[str, Any]:
        folder = self.root / "studies"
        for name in (f"{study}-{scale}", study) if scale else (study,):
            inside = "/" not in name and "\x00" not in name
            found = read_plan(folder / f"{name}.json") if inside else None
            if found is not None and scale in (None, _about(found).get("scale")):
                return found
        return self._only_plan(study, scale)

    def _only_plan(self, study: str, scale: str | None) -> dict[str, Any]:
        """A study that only ever ran at one scale, not its own, is found without --scale."""
        plans = {path.stem: read_plan(path) or {} for path in self.root.glob("studies/*.json")}
        mine = [each for each in plans.values() if _about(each).get("name") == study]
        if len(mine) == 1 and scale is None:
            return mine[0]
        if mine:
            scales = ", ".join(sorted(str(_about(each).get("scale")) for each in mine))
            raise InputError(f"study {study!r} in {self.root}: choose a --scale of {scales}")
        hint = did_you_mean(study, plans) or "; `harness run` makes one"
        raise InputError(f"no study {study!r} in {self.root}{hint}")

    def outcome(self, key: str) -> Mapping[str, Any]:
        folder = self.store.find(key)
        if folder is None:
            return MISSING
        found = self.store.outcome(folder)
        if found is not None:
            lists = {"alarms": list(found.alarms), "notes": list(found.notes)}
            return {**vars(found), **lists, "state": found.status}
        return {"state": state_of(self.store, key), "alarms": read_alarms(folder)}

    def stage(self, key: str) -> Mapping[str, Any]:
        folder = self.store.find(key)
        found = (read_table(folder / "stage.json") if folder else None) or {}
        if not isinstance(found.get("task", {}), dict):
            raise InputError(f"{folder}/stage.json: task: expected a table")
        return found

    def history(self, key: str) -> list[dict[str, Any]]:
        folder = self.store.find(key)
        try:
            text = (folder / "metrics.jsonl").read_bytes() if folder else b""
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from None
        return [line for line in map(read_line, text.splitlines()) if line]

    def pictures(self, key: str) -> dict[str, bytes]:
        folder = self.store.find(key)
        paths = sorted((folder / "pictures").glob("*.png")) if folder else []
        return {path.stem: path.read_bytes() for path in paths}


def _about(plan: Mapping[str, Any]) -> Mapping[str, Any]:
    found = plan.get("study")
    return found if isinstance(found, dict) else {}
