"""The store: one folder per stage, and the only thing the program believes."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from harness.stage import KINDS, Stage, stage_record
from methods.engine.work import ALARMS
from methods.errors import InputError, StageError
from methods.values import from_plain, refuse_deep, to_plain

LARGEST_METRIC = 1e100
RESULTS = ("metrics.jsonl", "encoder.safetensors", "encoder.json", "pictures", ALARMS)


@dataclass(frozen=True)
class Outcome:
    """How an attempt at a stage ended; outcome.json is written last, so its presence is the end."""

    status: Literal["done", "failed"]
    metrics: Mapping[str, float] = field(default_factory=dict)
    cost: Mapping[str, int | float | str] = field(default_factory=dict)
    error: Mapping[str, str] | None = None
    attempt: str = ""
    finished: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str = ""
    resumed: int = 0
    redone_steps: int = 0
    alarms: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # Sums, squares and dates of them are numbers and dates, too.
        for name in ("seconds", "images", "images_per_second", "gflops"):
            value = self.cost.get(name, 0)
            if isinstance(value, str) or abs(value) > 1e18:
                raise ValueError(f"cost.{name}: expected a number up to 1e18, not {value!r}")
        for name, value in self.metrics.items():
            if not abs(value) <= LARGEST_METRIC:
                raise ValueError(f"metrics.{name}: {value!r} is too large")
        if not 0 <= self.finished < 1e11:
            raise ValueError(f"finished: expected seconds since 1970, not {self.finished!r}")

    @property
    def done(self) -> bool:
        return self.status == "done"

    @property
    def reason(self) -> str:
        """`data: images/17.jpg: truncated`, or "" for a stage that is done."""
        error = self.error or {}
        return f"{error.get('reason', 'code')}: {error.get('message', '')}" if self.error else ""


def read_json(path: Path) -> Any:
    """The JSON in `path`, or None where there is no such file; InputError where it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from None
    refuse_deep(found, str(path))
    return found


def read_table(path: Path) -> dict[str, Any] | None:
    """As `read_json`, for a file that must hold a table."""
    found = read_json(path)
    if found is not None and not isinstance(found, dict):
        raise InputError(f"{path}: expected a table, found {type(found).__name__}")
    return found


def read_outcome(path: Path) -> Outcome | None:
    """The outcome in `path`, or None where there is no such file; InputError naming the field."""
    plain = read_table(path)
    return None if plain is None else from_plain(Outcome, plain, str(path))


def write_json(path: Path, record: Any, sync: bool = True) -> None:
    """Writes aside, syncs, renames: a reader sees the old file or the new one, never half.

    `sync`: wait for the disk, 10 ms or more, so that the file outlives a power cut. What a second
    `harness run` would write again does without.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            json.dump(record, file, indent=1, allow_nan=False)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


class Store:
    """Reads and writes `runs/`. Stages are found by key, so a store may be moved."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._index: dict[str, Path] | None = None

    def create(self) -> Store:
        """Makes the folder; raises InputError where that, or writing into it, is not possible."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{secrets.token_hex(4)}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise InputError(f"--store {self.root}: not writable ({error.strerror})") from None
        return self

    def lock(self) -> Any:
        """Held while deciding and submitting, so that two `harness run` submit a stage once."""
        from filelock import FileLock

        return FileLock(self.root / "lock", timeout=120)

    def folders(self) -> Iterator[Path]:
        """Every stage's folder. Raises InputError where a folder of them cannot be read."""
        for kind in KINDS:
            try:
                with os.scandir(self.root / kind) as entries:
                    yield from [Path(each.path) for each in entries if "-" in each.name]
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise InputError(f"{self.root / kind}: cannot be read ({error.strerror})") from None

    def find(self, key: str) -> Path | None:
        """The folder of the stage with this key, wherever the store now lies."""
        if self._index is None:
            self._index = {each.name.rpartition("-")[2]: each for each in self.folders()}
        found = self._index.get(key)
        return found if found is not None and found.is_dir() else None

    def match(self, word: str) -> Path:
        """The one folder with this name, `kind/name`, or prefix of its key; or an InputError."""
        name = word.rstrip("/").rpartition("/")[2]
        found = [
            each
            for each in self.folders()
            if each.name == name or (name and each.name.rpartition("-")[2].startswith(name))
        ]
        if len(found) != 1:
            what = "no stage" if not found else "more than one stage"
            hint = "harness status lists them" if not found else ", ".join(f.name for f in found)
            raise InputError(f"{what} in {self.root} is called {word!r} ({hint})")
        return found[0]

    def folder(self, stage: Stage) -> Path:
        """Where the stage is, or would be; a label may differ from the one it was made under."""
        return self.find(stage.key) or self.root / stage.kind / stage.name

    def add(self, stage: Stage, about: Mapping[str, Any]) -> Path:
        """The stage's folder with its stage.json; what is there already stays as it is."""
        folder = self.folder(stage)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "stage.json").exists():
            write_json(folder / "stage.json", stage_record(stage, about), sync=False)
        if self._index is not None:
            self._index[stage.key] = folder
        return folder

    def outcome(self, folder: Path) -> Outcome | None:
        """How the stage ended, or None. Raises InputError where outcome.json is damaged."""
        return read_outcome(folder / "outcome.json")

    def record(self, folder: Path) -> dict[str, Any]:
        """The content of stage.json. Raises InputError naming the file and what is wrong."""
        path = folder / "stage.json"
        plain = read_table(path)
        if plain is None:
            raise InputError(f"{path}: missing")
        if plain.get("format") != 1:
            raise InputError(f"{path}: format: expected 1, found {plain.get('format')!r}")
        if plain.get("key") != folder.name.rpartition("-")[2]:
            raise InputError(f"{path}: key: does not agree with the folder's name")
        needs = plain.get("needs", {})
        if not isinstance(needs, dict) or not all(isinstance(k, str) for k in needs.values()):
            raise InputError(f"{path}: needs: expected a table of roles and keys")
        return plain

    def write_plan(self, name: str, records: Mapping[str, Any]) -> None:
        """Writes runs/studies/<name>.json."""
        folder = self.root / "studies"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{name}.json", records)

    def attempts(self, folder: Path) -> list[dict[str, Any]]:
        """The job.json of every attempt, the oldest first; `attempt` is its folder's name."""
        paths = sorted((folder / "attempts").glob("*/job.json"))
        found = [(read_table(path), path.parent.name) for path in paths]
        return [{**each, "attempt": name} for each, name in found if each is not None]

    def begin_attempt(self, folder: Path, job: Mapping[str, Any]) -> str:
        """Opens attempts/<id>/ with its job.json; an old outcome moves to its own attempt."""
        self.archive_outcome(folder)
        attempt = f"{_stamp(folder / 'attempts')}-{secrets.token_hex(3)}"
        place = folder / "attempts" / attempt
        place.mkdir(parents=True)
        about = {"attempt": attempt, "submitted": time.time(), "folder": str(folder.resolve())}
        record = {**about, **job}
        write_json(place / "job.json", record, sync=False)
        return attempt

    def update_attempt(self, folder: Path, attempt: str, **changes: Any) -> None:
        """Adds to the job.json of an attempt."""
        path = folder / "attempts" / attempt / "job.json"
        write_json(path, {**(read_table(path) or {}), **changes}, sync=False)

    def archive_outcome(self, folder: Path, everything: bool = False) -> None:
        """Moves outcome.json into its attempt's folder; with `everything` the results too.

        In an order that may end anywhere: what says that it is done lacks at most its checkpoints,
        as after `harness clean`, and what is begun again finds none. The folder of the attempts,
        or one of the results, may be a link or a mount of another file system.
        """
        path = folder / "outcome.json"
        outcome = read_outcome(path)
        if outcome is None:
            return
        attempts = folder / "attempts"
        known = outcome.attempt in {each.name for each in attempts.glob("*")}
        place = attempts / (outcome.attempt if known else "unknown")
        place.mkdir(parents=True, exist_ok=True)
        if everything:
            _move("state", folder, place)
        try:
            path.replace(place / path.name)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self.finish(place, outcome)
            path.unlink()
        for name in RESULTS if everything else ():
            _move(name, folder, place)

    def finish(self, folder: Path, outcome: Outcome) -> None:
        """Writes outcome.json, the last thing that happens to an attempt."""
        plain = to_plain(outcome, declared=Outcome)
        write_json(folder / "outcome.json", plain)


def _move(name: str, folder: Path, place: Path) -> None:
    if (folder / name).exists():
        try:
            shutil.move(folder / name, place / name)
        except OSError as error:
            told = f"{folder / name}: cannot be moved to {place}: {error}"
            raise StageError("disk", told) from None


def _stamp(attempts: Path) -> str:
    """The time as in the names of attempts; after the newest of them, whatever the clock says."""
    form = "%Y%m%d-%H%M%S"
    newest = max((each.name[:15] for each in attempts.glob("*-*-*")), default="")
    now = time.strftime(form)
    try:
        after = datetime.strptime(newest, form) + timedelta(seconds=1)
    except (ValueError, OverflowError):
        return now
    return max(now, after.strftime(form))
