"""Claims: the effect of each with its interval over seeds, what it comes to, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.claim import Claim
from harness.report import numbers
from harness.report.comparison import banner, missing_text
from harness.report.convergence import convergence
from harness.report.paired import Effect, effect
from harness.report.records import SHORT
from harness.report.rows import Row, by_seed
from harness.report.source import Source
from harness.report.table import Cell, Column, Line, Table, clean
from methods.values import from_plain

COLUMNS = (
    Column("claim", "Claim"),
    Column("source", "Claimed by"),
    Column("compared", "Compared"),
    Column("measure", "Measure"),
    Column("effect", "Effect", numeric=True),
    Column("low", "95 % from", numeric=True),
    Column("high", "to", numeric=True),
    Column("seeds", "Seeds", numeric=True),
    Column("verdict", "Verdict"),
    Column("compute", "Compute", numeric=True),
)
NOTES = (
    "Effect: treatment − control, paired by seed; the mean, and its 95 % interval by Student's t. "
    "The intervals are of one claim each, not of all together.",
    "Verdict: supported where the interval lies wholly on the claim's side, not supported where it "
    "lies wholly on the other, undecided where it holds both. “No lower” is supported where the "
    "interval lies above −margin, and not where it lies below.",
    "lin at 50 %: the treatment's encoder after that share of its schedule (its learning rate not "
    "yet decayed) against the control's after all of its own.",
    "Better teacher: the treatment is the row whose teacher has the higher zero-shot accuracy; "
    "undecided where the two differ by no more than the 95 % error of their validation images. "
    "Each teacher is one network, so the interval is over students and not over teachers.",
    "Compute: operations of pretraining on one image, forward and backward, frozen networks "
    "included, the treatment's against the control's. Operations are counted and do not vary with "
    "the seed.",
)


@dataclass(frozen=True)
class Values:
    """One measure of one row: numbers by seed, and what is said where one is missing."""

    numbers: Mapping[int, float]
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class ZeroShot:
    """A teacher's accuracy, from 0 to 1, on so many validation images."""

    accuracy: float
    images: int

    @property
    def variance(self) -> float:
        """Of the accuracy, over draws of the images."""
        return self.accuracy * (1 - self.accuracy) / self.images


@dataclass(frozen=True)
class Pair:
    """The two rows of a claim as they are compared; `doubt` forbids a verdict."""

    treatment: Row | None
    control: Row | None
    names: tuple[str, str]
    note: str = ""
    doubt: bool = False


def verdict(claim: Claim, low: float, high: float) -> str:
    """supported, not supported or undecided, from the interval of the effect."""
    if claim.expect == "lower":
        low, high = -high, -low
    bound = -claim.margin
    return "supported" if low > bound else "not supported" if high < bound else "undecided"


def claims(source: Source, plan: Mapping[str, Any], rows: Sequence[Row]) -> list[Table]:
    """The study's claims, and the accuracy along the schedule where rows were probed on the way.

    `rows` have the evaluations of milestones (`linear@50`) among their cells. None where the study
    claims nothing. Raises InputError for a damaged plan.
    """
    study = dict(plan["study"])
    found = [from_plain(Claim, each, "plan: claims") for each in study.get("claims") or []]
    if not found:
        return []
    named = {row.label: row for row in rows}
    pairs = [_pair(claim, named, source, plan) for claim in found]
    lines = tuple(map(_line, found, pairs))
    teachers = dict.fromkeys(pair.note for pair in pairs if pair.note)
    notes = (*NOTES, *(f"{note[:1].upper()}{note[1:]}." for note in teachers), _spent(rows))
    about = (study["scale"], COLUMNS, lines, banner(study), notes)
    early = [(claim.treatment, claim.control) for claim in found if claim.at < 1]
    return [Table("claims", "Claims", *about), *convergence(rows, early, study)]


def _pair(claim: Claim, rows: Mapping[str, Row], source: Source, plan: Mapping[str, Any]) -> Pair:
    """The claim's rows; where its teachers decide, the one with the better teacher first."""
    names = (clean(claim.treatment), clean(claim.control))
    pair = Pair(rows.get(names[0]), rows.get(names[1]), names)
    if not claim.better_teacher or pair.treatment is None or pair.control is None:
        return pair
    first, second = (_zero_shot(row, source, plan) for row in (pair.treatment, pair.control))
    if first is None or second is None:
        return replace(pair, note="the teachers' accuracy is not known", doubt=True)
    error = 1.96 * math.sqrt(first.variance + second.variance)
    note = (
        f"zero-shot accuracy of the teachers: {100 * first.accuracy:.1f} ({names[0]}) and "
        f"{100 * second.accuracy:.1f} ({names[1]}), ± {100 * error:.1f} for their difference"
    )
    doubt = abs(first.accuracy - second.accuracy) <= error
    if second.accuracy > first.accuracy:
        return Pair(pair.control, pair.treatment, names[::-1], note, doubt)
    return Pair(pair.treatment, pair.control, names, note, doubt)


def _zero_shot(row: Row, source: Source, plan: Mapping[str, Any]) -> ZeroShot | None:
    """What the row's teacher scored, or None where it is not known (yet)."""
    pretrain = plan["stages"].get(row.first["pretrain_key"], {})
    for key in pretrain.get("needs", {}).values():
        if plan["stages"].get(key, {}).get("kind") == "teacher":
            accuracy = (source.outcome(key).get("metrics") or {}).get("zero_shot")
            data = (source.stage(key).get("task") or {}).get("data") or {}
            images = data.get("validation")
            return ZeroShot(accuracy, images) if accuracy is not None and images else None
    return None


def values(row: Row | None, name: str) -> Values:
    """The row's evaluation `name`, or the operations of its pretraining for "gflops"."""
    if row is None:
        return Values({}, ("not run",))
    if name == "gflops":
        return operations(row)
    cell = row.cell(name)
    words = dict.fromkeys(missing_text(each) for each in cell if each["value"] is None)
    return Values(by_seed(cell), tuple(words) if cell else ("not run",))


def operations(row: Row) -> Values:
    """GFLOP that the row's pretraining takes for one image, by seed."""
    known: dict[int, float] = {}
    words: dict[str, None] = {}
    for each in row.records:
        if each["pretrain_gflops"] and each["pretrain_images"]:
            known[each["seed"]] = each["pretrain_gflops"] / each["pretrain_images"]
        elif each["seed"] not in known:
            words[missing_text(each) or "not run"] = None
    return Values(known, tuple(words))


def _line(claim: Claim, pair: Pair) -> Line:
    name = claim.evaluation or "gflops"
    treatment = values(pair.treatment, name)
    control = values(pair.control, name.partition("@")[0])
    found = effect(treatment.numbers, control.numbers)
    missing = tuple(dict.fromkeys((*treatment.missing, *control.missing)))
    cells = {
        "claim": Cell(clean(claim.sentence), note=_expected(claim)),
        "source": Cell(clean(claim.source) or "–"),
        "compared": Cell(f"{pair.names[0]} − {pair.names[1]}", note=clean(pair.note)),
        "measure": Cell(_measure(claim)),
        "verdict": _verdict_cell(claim, pair, found, missing),
        "compute": _compute(pair),
        **_effect_cells(claim, found, missing),
    }
    return Line(tuple(cells[column.name] for column in COLUMNS))


def _expected(claim: Claim) -> str:
    margin = f" by {claim.margin:g} or more" if claim.margin else ""
    return f"expected: the treatment is {claim.expect}{margin}"


def _measure(claim: Claim) -> str:
    if claim.metric == "gflops":
        return "GFLOP an image"
    share = f" at {100 * claim.at:g} %" if claim.at < 1 else ""
    margin = f", margin {claim.margin:g}" if claim.margin else ""
    return f"{SHORT[claim.metric]}{share}{margin}"


def _effect_cells(claim: Claim, found: Effect | None, missing: Sequence[str]) -> dict[str, Cell]:
    if found is None:
        lacking = Cell("; ".join(missing) or "not run", None, "missing")
        return {name: lacking for name in ("effect", "low", "high", "seeds")}
    shown = _signed(claim)

    def bound(value: float | None) -> Cell:
        one = Cell("one seed", None, "missing", note="one seed has no interval")
        return one if value is None else Cell(shown(value), value, "difference")

    count = len(found.differences)
    listed = ", ".join(shown(each) for each in found.differences)
    return {
        "effect": Cell(shown(found.mean), found.mean, "difference", note=f"by seed: {listed}"),
        "low": bound(found.low),
        "high": bound(found.high),
        "seeds": Cell(str(count), float(count)),
    }


def _signed(claim: Claim) -> Callable[[float], str]:
    if claim.metric != "gflops":
        return numbers.signed
    return lambda value: ("+" if value > 0 else "−" if value < 0 else "") + f"{abs(value):.3g}"


def _verdict_cell(claim: Claim, pair: Pair, found: Effect | None, missing: Sequence[str]) -> Cell:
    """A verdict once every seed has ended; from the others where some failed for good."""
    waiting = [word for word in missing if word in ("pending", "running")]
    if waiting or found is None:
        return Cell("; ".join(waiting or missing) or "not run", None, "missing")
    if found.low is None or found.high is None:
        return Cell("undecided", note="one seed has no interval")
    if pair.doubt:
        return Cell("undecided", note=f"{pair.note}: neither is better for sure")
    word = verdict(claim, found.low, found.high)
    told = "; ".join(missing)
    return Cell(f"{word} ({told})" if told else word, note=told)


def _compute(pair: Pair) -> Cell:
    """How many more operations an image the treatment's pretraining takes than the control's."""
    both = [values(row, "gflops") for row in (pair.treatment, pair.control)]
    ours, theirs = (numbers.summarise(list(each.numbers.values())) for each in both)
    if ours is None or theirs is None or theirs.mean == 0:
        words = dict.fromkeys(word for each in both for word in each.missing)
        return Cell("; ".join(words) or "not run", None, "missing")
    share = 100 * (ours.mean / theirs.mean - 1)
    told = f"{ours.mean:.3g} against {theirs.mean:.3g} GFLOP an image"
    took = [_seconds(row) for row in (pair.treatment, pair.control)]
    told += f"; {took[0]} against {took[1]} of pretraining"
    return Cell(f"{numbers.signed(share)} %", share, "difference", note=told)


def _seconds(row: Row | None) -> str:
    """How long the row's pretraining took, the mean over its seeds."""
    records = row.records if row else []
    found = {each["seed"]: each["pretrain_seconds"] for each in records if each["pretrain_seconds"]}
    summary = numbers.summarise(list(found.values()))
    return numbers.duration(summary.mean) if summary else "pending"


def _spent(rows: Sequence[Row]) -> str:
    """What the rows' own stages took together, each once."""
    totals = dict.fromkeys(("seconds", "images", "gflops"), 0.0)
    seen: set[str] = set()
    for each in (record for row in rows for record in row.records):
        for key, prefix in ((each["key"], ""), (each["pretrain_key"], "pretrain_")):
            if key and key not in seen:
                seen.add(key)
                for name in totals:
                    totals[name] += each[prefix + name] or 0.0
    took, images = numbers.duration(totals["seconds"]), numbers.count(totals["images"])
    return (
        f"All rows together so far: {took} in training loops, {images} images seen, "
        f"{totals['gflops'] / 1000:.1f} TFLOP, without the teachers and the tokenizer."
    )
