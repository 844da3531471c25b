"""The comparison: every row's results as mean and spread over seeds, beside published numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness import published
from harness.published import Number
from harness.report import numbers
from harness.report.numbers import Summary
from harness.report.records import SHORT
from harness.report.rows import REFERENCES, Record, Row, by_seed, evaluations_of
from harness.report.table import Cell, Column, Line, Mark, Role, Table, clean

ORIENTATION = "ViT-B/16"  # the published backbone that stands beside a smaller scale's rows
PENDING = ("missing", "queued")


def comparison(rows: Sequence[Row], study: dict[str, Any], known: Sequence[Number]) -> Table:
    """The comparison of one study at one scale.

    A difference to the published number is given at the paper scale only, and only where the row
    trained as long as the published one.
    """
    evals = evaluations_of(rows)
    columns = _columns(rows, evals, study["scale"])
    marked = {kind: numbers.marks([row.summary(kind) for row in rows]) for kind in evals}
    lines = []
    for index, row in enumerate(rows):
        marks = {kind: column[index] for kind, column in marked.items()}
        cells = _line(row, evals, study["scale"], known, marks)
        role: Role = "reference" if row.reference else ""
        lines.append(Line(tuple(cells[column.name] for column in columns), role))
    title = clean(study.get("title") or study["name"])
    notes = tuple(_notes(rows, study["scale"]))
    return Table("comparison", title, study["scale"], columns, tuple(lines), banner(study), notes)


def banner(study: dict[str, Any]) -> str:
    """What stands above every table that is not of the paper scale."""
    if study["scale"] == "paper":
        return ""
    note = clean(study.get("note") or "")
    own = f"Scale {clean(study['scale'])}{': ' + note if note else ''}".rstrip(".")
    return (
        f"{own}. These numbers are not comparable with the published ones, which stand beside them "
        "for orientation."
    )


def _columns(rows: Sequence[Row], evals: list[str], scale: str) -> tuple[Column, ...]:
    columns = [Column("method", "Method")]
    if any(row.variant for row in rows):
        columns.append(Column("variant", "Variant"))
    columns += [Column(name, name.title()) for name in _PARTS]
    columns.append(Column("epochs", "Epochs", numeric=True))
    for each in evals:
        columns.append(Column(SHORT[each], SHORT[each], "measured", True))
        for name, (kind, title, metric) in _BESIDE.items():
            if kind == each and any(_values(row, kind, metric) for row in rows):
                columns.append(Column(name, title, "measured", True))
    columns.append(Column("seeds", "Seeds", "measured", True))
    columns.append(Column("published_epochs", "Epochs", "published", True))
    columns += [Column(f"published_{SHORT[e]}", SHORT[e], "published", True) for e in evals]
    if scale == "paper":
        columns += [Column(f"delta_{SHORT[e]}", SHORT[e], "difference", True) for e in evals]
    return (*columns, Column("cost", "Cost", numeric=True))


_PARTS = ("backbone", "decoder", "target")
# Metrics that stand beside an evaluation's own, where there are any: by column, its kind and title.
_BESIDE = {
    "lin_best_rate": ("linear", "lin, best rate", "top1_best_rate"),
    "seg_multi_scale": ("segmentation", "seg, multi-scale", "mIoU_multi_scale"),
}


def _line(
    row: Row, evals: list[str], scale: str, known: Sequence[Number], marks: Mapping[str, Mark]
) -> dict[str, Cell]:
    first, trained = row.first, row.first["epochs"]
    backbone = first["backbone"] if scale == "paper" else ORIENTATION
    default = not row.changed  # a published number is of the method as it is defined
    shown = published.schedule(known, row.method, backbone, trained) if default else None
    cells = {name: _text(first[name]) for name in ("method", "variant", *_PARTS)}
    cells["epochs"] = Cell(numbers.epochs(trained), trained)
    cells["seeds"] = Cell(str(row.seeds), float(row.seeds))
    cells["published_epochs"] = Cell(numbers.epochs(shown), shown, "published")
    for kind in evals:
        name = SHORT[kind]
        cells[name] = measured(row.cell(kind), marks[kind])
        number = published.lookup(known, row.method, backbone, kind, shown) if shown else None
        cells[f"published_{name}"] = _published(number)
        same = number if number and number.epochs == trained else None
        cells[f"delta_{name}"] = _difference(row.summary(kind), same)
    cells |= {name: _beside(_values(row, kind, each)) for name, (kind, _, each) in _BESIDE.items()}
    cells["cost"] = _cost(row)
    return cells


def _text(value: Any) -> Cell:
    return Cell(clean(value) or "–")


def measured(cell: Sequence[Record], mark: Mark = "") -> Cell:
    """The cell of one row and evaluation from its records, one per seed."""
    summary = numbers.summarise(list(by_seed(cell).values()))
    words = list(dict.fromkeys(missing_text(each) for each in cell))
    reasons = [clean(each["reason"]) for each in cell if each["reason"]]
    note = "; ".join(dict.fromkeys([*(word for word in words if word), *reasons]))
    if summary is None:
        return Cell("; ".join(words) or "not run", None, "missing", note=note)
    of = f" ({summary.n} of {len(cell)})" if summary.n < len(cell) else ""
    text = numbers.spread(summary) + of
    return Cell(text, summary.mean, "measured", mark, summary.std, summary.n, note)


def missing_text(record: dict[str, Any]) -> str:
    """What a cell without a number says: pending, running, failed (reason) or not run."""
    state, reason = record["state"], clean(record["reason"])
    if state == "done":
        return ""
    if state in PENDING:
        return "pending"
    if state == "failed":
        return f"failed ({reason.split(':')[0]})"
    if state == "blocked":
        kind, _, why = reason.partition(" failed: ")
        return f"not run ({kind} failed: {why.split(':')[0]})"
    return "running" if state == "running" else "not run"


def _published(number: Number | None) -> Cell:
    if number is None:
        return Cell("–", None, "published", note="no published value")
    where = "; ".join(each for each in (number.status, number.source, number.note) if each)
    text = numbers.decimal(number.value) + number.mark
    return Cell(text, number.value, "published", note=clean(where))


def _difference(summary: Summary | None, number: Number | None) -> Cell:
    if summary is None or number is None:
        why = "nothing measured" if number else "no published value at these epochs"
        return Cell("–", None, "difference", note=why)
    value = summary.mean - number.value
    return Cell(numbers.signed(value), value, "difference")


def _values(row: Row, kind: str, metric: str) -> list[float]:
    """A metric of the row's evaluations of `kind`, one per seed that has it."""
    metrics = [each["metrics"] for each in row.cell(kind) if each["state"] == "done"]
    return [each[metric] for each in metrics if metric in each]


def _beside(values: list[float]) -> Cell:
    summary = numbers.summarise(values)
    if summary is None:
        return Cell("–", None, "measured", note="not asked for")
    return Cell(numbers.spread(summary), summary.mean, "measured", "", summary.std, summary.n)


def _cost(row: Row) -> Cell:
    """Seconds of the row's own pretraining and evaluations, the mean over seeds."""
    planned = [each for each in row.records if each["state"] != "absent"]
    totals: dict[int, float] = {}
    for each in planned:
        totals.setdefault(each["seed"], each["pretrain_seconds"] or 0.0)
        totals[each["seed"]] += each["seconds"] or 0.0
    seconds = numbers.summarise([total for total in totals.values() if total > 0])
    if seconds is None:
        return Cell("pending", None, "missing")
    whole = all(each["state"] == "done" for each in planned)
    text = ("" if whole else "≥ ") + numbers.duration(seconds.mean)
    words = [] if whole else ["some stages are missing"]
    return Cell(text, seconds.mean, note="; ".join([*words, *_devices([row])]))


def _devices(rows: Sequence[Row]) -> list[str]:
    names = (clean(record["device"]) for row in rows for record in row.records)
    return [name for name in dict.fromkeys(names) if name]


def _notes(rows: Sequence[Row], scale: str) -> list[str]:
    devices = ", ".join(_devices(rows))
    notes = [
        "lin: linear probe, ft: fine-tuning, seg: semantic segmentation (mIoU), knn: nearest "
        "neighbours; in per cent, mean ± standard deviation over the seeds.",
        "Bold is the best and underlined the second, where the gap to the next exceeds the noise "
        f"(pooled standard deviation, at least {numbers.NOISE_FLOOR} points).",
        "Published: " + ", ".join(f"{m} {what}" for m, what in published.MEANING.items()) + ".",
        "Cost: the row's own pretraining and evaluations, without the teacher and tokenizer that "
        f"rows share{'; on ' if devices else ''}{devices}.",
    ]
    if max(row.seeds for row in rows) == 1:
        notes.insert(1, "n = 1: one seed shows no noise, so nothing is marked.")
    if scale != "paper":
        notes.append(f"Published numbers are of {ORIENTATION} on ImageNet-1k and ADE20K.")
    present = [f"{row.method}: {REFERENCES[row.method]}" for row in rows if row.reference]
    return [*notes, *(["; ".join(present) + "."] if present else [])]
