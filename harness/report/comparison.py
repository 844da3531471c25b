"""The comparison: every row's results as mean and spread over seeds, beside published numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness import published
from harness.published import Number
from harness.report import numbers
from harness.report.numbers import Summary
from harness.report.records import SHORT
from harness.report.table import Cell, Column, Line, Mark, Role, Table, clean

if TYPE_CHECKING:
    import pandas

ORIENTATION = "ViT-B/16"  # the published backbone that stands beside a smaller scale's rows
REFERENCES = {
    "random": "the encoder at random initialisation",
    "scratch": "the encoder trained from scratch",
}
PENDING = ("missing", "queued")


def comparison(frame: pandas.DataFrame, study: dict[str, Any], known: Sequence[Number]) -> Table:
    """The comparison of one study at one scale. `frame` is records.frame's, not empty.

    A difference to the published number is given at the paper scale only, and only where the row
    trained as long as the published one.
    """
    evals = list(dict.fromkeys(frame["eval"]))
    groups = [group for _, group in frame.groupby(["method", "variant"], sort=False)]
    columns = _columns(evals, study["scale"], frame)
    marked = [numbers.marks([_summary(group, each) for group in groups]) for each in evals]
    lines = []
    for index, group in enumerate(groups):
        marks = {each: column[index] for each, column in zip(evals, marked, strict=True)}
        cells = _line(group, evals, study["scale"], known, marks)
        role: Role = "reference" if group["method"].iloc[0] in REFERENCES else ""
        lines.append(Line(tuple(cells[column.name] for column in columns), role))
    title = clean(study.get("title") or study["name"])
    notes = _notes(frame, study["scale"])
    return Table(
        "comparison", title, study["scale"], columns, tuple(lines), banner(study), tuple(notes)
    )


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


def _columns(evals: list[str], scale: str, frame: pandas.DataFrame) -> tuple[Column, ...]:
    columns = [Column("method", "Method")]
    if frame["variant"].astype(bool).any():
        columns.append(Column("variant", "Variant"))
    columns += [Column(name, name.title()) for name in ("backbone", "decoder", "target")]
    columns.append(Column("epochs", "Epochs", numeric=True))
    for each in evals:
        columns.append(Column(SHORT[each], SHORT[each], "measured", True))
        if each == "linear" and _best_rates(frame):
            columns.append(Column("lin_best_rate", "lin, best rate", "measured", True))
    columns.append(Column("seeds", "Seeds", "measured", True))
    columns.append(Column("published_epochs", "Epochs", "published", True))
    columns += [Column(f"published_{SHORT[e]}", SHORT[e], "published", True) for e in evals]
    if scale == "paper":
        columns += [Column(f"delta_{SHORT[e]}", SHORT[e], "difference", True) for e in evals]
    return (*columns, Column("cost", "Cost", numeric=True))


def _best_rates(frame: pandas.DataFrame) -> list[float]:
    return [each["top1_best_rate"] for each in frame["metrics"] if "top1_best_rate" in each]


def _line(
    group: pandas.DataFrame,
    evals: list[str],
    scale: str,
    known: Sequence[Number],
    marks: dict[str, Mark],
) -> dict[str, Cell]:
    first = group.iloc[0]
    backbone = first["backbone"] if scale == "paper" else ORIENTATION
    trained = float(first["epochs"]) if first["epochs"] > 0 else None
    default = not first["changed"]  # a published number is of the method as it is defined
    shown = published.schedule(known, first["method"], backbone, trained) if default else None
    cells = {name: _text(first[name]) for name in ("method", "variant", *_PARTS)}
    cells["epochs"] = Cell(numbers.epochs(trained), trained)
    cells["seeds"] = Cell(str(group["seed"].nunique()), float(group["seed"].nunique()))
    cells["published_epochs"] = Cell(numbers.epochs(shown), shown, "published")
    for kind in evals:
        name, summary = SHORT[kind], _summary(group, kind)
        cells[name] = measured(group[group["eval"] == kind], marks[kind])
        number = published.lookup(known, first["method"], backbone, kind, shown) if shown else None
        cells[f"published_{name}"] = _published(number)
        same = number if number and number.epochs == trained else None
        cells[f"delta_{name}"] = _difference(summary, same)
    cells["lin_best_rate"] = _best_rate_cell(group)
    cells["cost"] = _cost(group)
    return cells


_PARTS = ("backbone", "decoder", "target")


def _text(value: Any) -> Cell:
    return Cell(clean(value) or "–")


def _summary(group: pandas.DataFrame, kind: str) -> Summary | None:
    return numbers.summarise(list(group.loc[group["eval"] == kind, "value"].dropna()))


def measured(cells: pandas.DataFrame, mark: Mark = "") -> Cell:
    """The cell of one row and evaluation; `cells` holds its records, one per seed."""
    summary = numbers.summarise(list(cells["value"].dropna()))
    words = list(dict.fromkeys(missing_text(each) for each in cells.to_dict("records")))
    reasons = [clean(each) for each in dict.fromkeys(cells["reason"]) if each]
    note = "; ".join([*(word for word in words if word), *reasons])
    if summary is None:
        return Cell("; ".join(words), None, "missing", note=note)
    of = f" ({summary.n} of {len(cells)})" if summary.n < len(cells) else ""
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


def _best_rate_cell(group: pandas.DataFrame) -> Cell:
    summary = numbers.summarise(_best_rates(group[group["state"] == "done"]))
    if summary is None:
        return Cell("–", None, "measured", note="no learning-rate grid")
    return Cell(numbers.spread(summary), summary.mean, "measured", "", summary.std, summary.n)


def _cost(group: pandas.DataFrame) -> Cell:
    """Seconds of the row's own pretraining and evaluations, the mean over seeds."""
    planned = group[group["state"] != "absent"]
    totals = []
    for _, seed in planned.groupby("seed", sort=False):
        own = seed["seconds"].fillna(0).sum()
        totals.append(own + seed["pretrain_seconds"].fillna(0).iloc[0])
    seconds = numbers.summarise([total for total in totals if total > 0])
    if seconds is None:
        return Cell("pending", None, "missing")
    whole = (planned["state"] == "done").all()
    text = ("" if whole else "≥ ") + numbers.duration(seconds.mean)
    words = [] if whole else ["some stages are missing"]
    words += [clean(each) for each in dict.fromkeys(planned["device"]) if each]
    return Cell(text, seconds.mean, note="; ".join(words))


def _devices(frame: pandas.DataFrame) -> str:
    known = [clean(each) for each in dict.fromkeys(frame["device"]) if each]
    return f"; on {', '.join(known)}" if known else ""


def _notes(frame: pandas.DataFrame, scale: str) -> list[str]:
    notes = [
        "lin: linear probe, ft: fine-tuning, seg: semantic segmentation (mIoU), knn: nearest "
        "neighbours; in per cent, mean ± standard deviation over the seeds.",
        "Bold is the best and underlined the second, where the gap to the next exceeds the noise "
        f"(pooled standard deviation, at least {numbers.NOISE_FLOOR} points).",
        "Published: " + ", ".join(f"{m} {what}" for m, what in published.MEANING.items()) + ".",
        "Cost: the row's own pretraining and evaluations, without the teacher and tokenizer that "
        f"rows share{_devices(frame)}.",
    ]
    if frame["seed"].nunique() == 1:
        notes.insert(1, "n = 1: one seed shows no noise, so nothing is marked.")
    if scale != "paper":
        notes.append(f"Published numbers are of {ORIENTATION} on ImageNet-1k and ADE20K.")
    present = [each for each in dict.fromkeys(frame["method"]) if each in REFERENCES]
    if present:
        notes.append("; ".join(f"{each}: {REFERENCES[each]}" for each in present) + ".")
    return notes
