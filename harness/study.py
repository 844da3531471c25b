"""A study names methods, changes, evaluations and seeds; a scale is data laid over them."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import methods
from harness.claim import Claim, at_milestone
from harness.stage import EVALUATIONS
from methods.data.sets import ImageData, SegmentationData
from methods.errors import InputError
from methods.parts.encoder import Encoder
from methods.teachers import Teacher, Tokenizer
from methods.values import did_you_mean, from_plain, inputs_of, refuse_deep

STUDIES = Path(__file__).parent / "studies"
SCALES = Path(__file__).parent / "scales"

LONGEST = 100  # bytes of a name that becomes part of a file's, which may have 255
Evaluation = Literal["linear", "finetune", "segmentation", "knn"]
Reference = Literal["random", "scratch"]
# What can be measured before pretraining has ended, because it leaves the encoder as it is.
MILESTONE_EVALS = ("linear", "knn")
# What a reference row is measured by: an untrained encoder says nothing once it has been trained.
REFERENCE_EVALS: dict[str, tuple[str, ...]] = {
    "random": ("linear", "knn"),
    "scratch": ("finetune", "segmentation"),
}


def _check_length(field: str, text: str) -> None:
    if len(text.encode(errors="surrogateescape")) > LONGEST:
        raise ValueError(f"{field} may have at most {LONGEST} bytes, not as {text[:20]!r}...")


@dataclass(frozen=True)
class StudyRow:
    """One row: a method, the name of its variant, and the fields that differ (`set`).

    `schedule`: one of the method's further published schedules, below `set`. `weights`: a released
    checkpoint that takes the place of pretraining, a path or the `sha256:...` of an imported one.
    `milestones`: shares of the schedule at which the encoder is probed too (MILESTONE_EVALS).
    """

    method: str
    variant: str = ""
    set: Mapping[str, Any] = field(default_factory=dict)
    schedule: str = ""
    weights: str = ""
    milestones: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if any(not 0 < share < 1 for share in self.milestones):
            raise ValueError(f"milestones must be above 0 and below 1, not {self.milestones}")
        if len(set(self.milestones)) != len(self.milestones):
            raise ValueError("milestones must be listed once each")
        if self.weights and self.milestones:
            raise ValueError("milestones: a released checkpoint has none")
        if self.weights and not self.variant:
            raise ValueError("variant must be given where weights are, e.g. 'released'")
        if any(not (char.isalnum() or char in " .,+-_()=") for char in self.variant):
            raise ValueError("variant may hold letters, digits, blanks and . , + - _ ( ) =")
        _check_length("variant", self.variant)

    @property
    def name(self) -> str:
        """`milan uniform`, as claims name a row."""
        return f"{self.method} {self.variant}".strip()


@dataclass(frozen=True)
class Study:
    """What to compare. `methods` are rows without changes, put before `rows`.

    `claims` are tested by the report; `harness run` only sees to it that they can be.
    """

    name: str
    title: str = ""
    scale: str = "mini"
    methods: tuple[str, ...] = ()
    rows: tuple[StudyRow, ...] = ()
    references: tuple[Reference, ...] = ()
    evals: tuple[Evaluation, ...] = ("linear", "finetune", "segmentation")
    seeds: tuple[int, ...] = (0,)
    set: Mapping[str, Any] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()

    def __post_init__(self) -> None:
        if not self.name or any(not (char.isalnum() or char in "-_") for char in self.name):
            raise ValueError(f"name may hold letters, digits, - and _, not {self.name!r}")
        _check_length("name", self.name)
        for name in ("evals", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} must list at least one, and each once")
        if not (self.methods or self.rows or self.references):
            raise ValueError("methods or rows must name at least one method")
        if any(not 0 <= seed < 2**31 for seed in self.seeds):
            raise ValueError("seeds must be from 0 to 2147483647")
        labels = Counter((row.method, row.variant) for row in self.all_rows())
        for (method, variant), count in labels.items():
            if count > 1:
                raise ValueError(f"rows has {method} {variant!r} twice; give it a variant")

    def all_rows(self) -> tuple[StudyRow, ...]:
        """The rows without changes first, then the others."""
        return (*(StudyRow(name) for name in self.methods), *self.rows)

    def with_schedule(self, schedule: str) -> Study:
        """With this further published schedule in every row."""
        rows = tuple(
            replace(row, schedule=schedule, variant=row.variant or schedule)
            for row in self.all_rows()
        )
        return replace(self, methods=(), rows=rows)

    def with_weights(self, method: str, weights: str) -> Study:
        """With the released checkpoint `weights` instead of pretraining in the method's rows."""
        rows = tuple(
            replace(row, weights=weights, variant=row.variant or "released", milestones=())
            for row in self.all_rows()
            if row.method == method
        )
        if not rows:
            known = [row.method for row in self.all_rows()]
            raise InputError(f"--weights: no row is of {method!r}{did_you_mean(method, known)}")
        rest = tuple(row for row in self.rows if row.method != method)
        plain = tuple(name for name in self.methods if name != method)
        return replace(self, methods=plain, rows=(*rest, *rows))

    def only(self, names: tuple[str, ...]) -> Study:
        """With the rows of these methods; one that no row has becomes a row without changes."""
        rows = tuple(row for row in self.rows if row.method in names)
        plain = tuple(
            name
            for name in names
            if name in self.methods or all(row.method != name for row in rows)
        )
        return replace(self, methods=plain, rows=rows)


@dataclass(frozen=True)
class Scale:
    """How large a study is: data sets, frozen networks, and fields laid over parts and tasks.

    `parts` maps a part's class to fields, e.g. {"ViT": {"width": 128}}; `tasks` maps a stage kind
    to dotted fields of its task. A method's own definition is never changed by it.
    """

    name: str
    note: str
    data: ImageData
    segmentation_data: SegmentationData
    reference: Encoder
    teachers: Mapping[str, Teacher]
    tokenizers: Mapping[str, Tokenizer] = field(default_factory=dict)
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    threads: int = 0

    def __post_init__(self) -> None:
        if not self.name or any(not (char.isalnum() or char in "-_.") for char in self.name):
            raise ValueError(f"name may hold letters, digits, - _ and ., not {self.name!r}")
        _check_length("name", self.name)
        if self.threads < 0:
            raise ValueError("threads must be 0 (torch decides) or more")
        for kind in self.tasks:
            if kind != "pretrain" and kind not in EVALUATIONS:
                raise ValueError(f"tasks.{kind}: unknown{did_you_mean(kind, EVALUATIONS)}")


def read_toml(path: Path) -> dict[str, Any]:
    """The table in `path`; raises InputError naming the file, and the line where it is not TOML."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not TOML: {error}") from None
    refuse_deep(table, str(path))
    return table


def find_file(name: str, folder: Path, what: str) -> Path:
    """`name` as a path where it is one, else `folder/name.toml`; or InputError with the names."""
    if name.endswith(".toml") or "/" in name:
        return Path(name)
    path = folder / f"{name}.toml"
    if not path.is_file():
        known = [each.stem for each in folder.glob("*.toml")]
        raise InputError(f"no {what} is called {name!r}{did_you_mean(name, known)}")
    return path


def load_study(name: str) -> Study:
    """The study `name` (of harness/studies, or a path to a TOML file)."""
    path = find_file(name, STUDIES, "study")
    study = from_plain(Study, {"name": path.stem, **read_toml(path)}, str(path))
    for row in study.all_rows():
        with inputs_of(str(path)):
            methods.get(row.method)
    stages = {row.name: evaluations(study, row) for row in study.all_rows()}
    for number, claim in enumerate(study.claims):
        claim.check(stages, f"{path}: claims.{number}")
    return study


def evaluations(study: Study, row: StudyRow) -> dict[str, tuple[str, float]]:
    """The row's evaluations by the name of their stage: what is measured, after which share."""
    found: dict[str, tuple[str, float]] = {}
    for kind in study.evals:
        shares = sorted(row.milestones) if kind in MILESTONE_EVALS else []
        for share in (*shares, 1.0):
            found[at_milestone(kind, share)] = (kind, share)
    return found


def load_scale(name: str) -> Scale:
    """The scale `name` (of harness/scales, or a path to a TOML file), laid over its `base`."""
    path = find_file(name, SCALES, "scale")
    return from_plain(Scale, {**_scale_table(path, ()), "name": path.stem}, str(path))


def _scale_table(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if path in above:
        raise InputError(f"{path}: base: a scale cannot be based on itself")
    table = read_toml(path)
    base = table.pop("base", None)
    if base is None:
        return table
    if not isinstance(base, str):
        raise InputError(f"{path}: base: expected the name of a scale")
    with inputs_of(f"{path}: base"):
        below = _scale_table(find_file(base, SCALES, "scale"), (*above, path))
    return _laid_over(below, table)


def _laid_over(below: Any, above: Any) -> Any:
    """Tables merged field by field; a table with a type, and all else, replaces what is below."""
    both = isinstance(below, dict) and isinstance(above, dict)
    if not both or above.get("type") not in (None, below.get("type")):
        return above
    names = [*below, *(name for name in above if name not in below)]
    return {
        name: _laid_over(below[name], above[name])
        if name in below and name in above
        else above.get(name, below.get(name))
        for name in names
    }


def plan_name(study: Study, scale: str) -> str:
    """The plan's file in runs/studies: the study's name, with any scale but its own added."""
    return study.name if scale == study.scale else f"{study.name}-{scale}"
