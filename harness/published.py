"""The published numbers of results/published.csv, read strictly and looked up for a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from methods.errors import InputError
from methods.values import did_you_mean

PUBLISHED = Path(__file__).parent.parent / "results" / "published.csv"
COLUMNS = [
    "method",
    "backbone",
    "teacher",
    "epochs",
    "eval",
    "metric",
    "value",
    "status",
    "source",
    "note",
]

# The best first: a table shows the first of these that there is, and the mark that goes with it.
STATUSES = {"published": "", "quoted": "†", "reproduction": "‡", "unverified": "?"}
MEANING = {
    "†": "quoted by another paper or article",
    "‡": "measured by a re-implementation",
    "?": "no source confirms it",
}
METRICS = {
    "linear": ("top1", "top5"),
    "attentive": ("top1", "top5"),
    "knn": ("top1",),
    "finetune": ("top1", "top5"),
    "finetune_384": ("top1", "top5"),
    "finetune_448": ("top1", "top5"),
    "finetune_512": ("top1", "top5"),
    "imagenet_r": ("top1", "top5"),
    "segmentation": ("mIoU", "mAcc", "aAcc"),
    "segmentation_640": ("mIoU",),
    "segmentation_640_ms": ("mIoU",),
    "detection": ("box_ap", "mask_ap"),
}
# The schedule whose numbers stand in the comparison (recipes of the papers; BEiT v2's 1600-epoch
# linear probe was never published, so its 300-epoch row is the complete one).
SCHEDULES = {
    "milan": 400,
    "beitv2": 300,
    "maskdistill": 800,
    "mae": 1600,
    "simmim": 800,
    "beit": 800,
    "cae": 1600,
    "cmae": 1600,
}


@dataclass(frozen=True)
class Number:
    """One published number, in per cent. `epochs` is None where the source does not say."""

    method: str
    backbone: str
    teacher: str
    epochs: float | None
    eval: str
    metric: str
    value: float
    status: str
    source: str
    note: str = ""

    @property
    def mark(self) -> str:
        """What is printed behind the value: nothing for the authors' own numbers."""
        return STATUSES[self.status]


def read(path: Path = PUBLISHED) -> tuple[Number, ...]:
    """Every row of `path`; raises InputError naming the file, the line and the field."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        rows = [(lines.line_num, cells) for cells in lines]
    except csv.Error as error:
        raise InputError(f"{path}, line {lines.line_num}: not CSV ({error})") from None
    _check_header(path, rows[0][1] if rows else [])
    numbers = tuple(_number(cells, f"{path}, line {line}") for line, cells in rows[1:])
    _refuse_repeated(numbers, [line for line, _ in rows[1:]], path)
    return numbers


def _check_header(path: Path, header: list[str]) -> None:
    for name in header:
        if name not in COLUMNS:
            raise InputError(
                f"{path}, line 1: unknown column {name!r}{did_you_mean(name, COLUMNS)}"
            )
    if header != COLUMNS:
        raise InputError(f"{path}, line 1: the columns must be {','.join(COLUMNS)}")


def _number(cells: list[str], where: str) -> Number:
    if len(cells) != len(COLUMNS):
        raise InputError(f"{where}: {len(cells)} fields where {len(COLUMNS)} are expected")
    row = dict(zip(COLUMNS, (cell.strip() for cell in cells), strict=True))
    for name in ("method", "backbone", "teacher", "eval", "metric", "value", "status", "source"):
        if not row[name]:
            raise InputError(f"{where}: {name}: missing")
    for name, known in (("status", STATUSES), ("eval", METRICS)):
        _check_word(row[name], name, known, where)
    _check_word(row["metric"], "metric", METRICS[row["eval"]], where)
    epochs = _parse(row["epochs"], "epochs", where, 0, 1e5) if row["epochs"] else None
    value = _parse(row["value"], "value", where, 0, 100)
    words = {name: word for name, word in row.items() if name not in ("epochs", "value")}
    return Number(epochs=epochs, value=value, **words)


def _check_word(word: str, name: str, known: Iterable[str], where: str) -> None:
    if word not in known:
        raise InputError(f"{where}: {name}: unknown {word!r}{did_you_mean(word, known)}")


def _parse(text: str, name: str, where: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{where}: {name}: {text!r} is no number") from None
    if not low <= value <= high:
        raise InputError(f"{where}: {name}: {text} is not between {low:g} and {high:g}")
    return value


def _refuse_repeated(numbers: Sequence[Number], lines: Sequence[int], path: Path) -> None:
    seen: dict[Number, int] = {}
    for number, line in zip(numbers, lines, strict=True):
        if number in seen:
            raise InputError(f"{path}, line {line}: the same row as line {seen[number]}")
        seen[number] = line


def lookup(
    numbers: Sequence[Number],
    method: str,
    backbone: str,
    eval: str,
    epochs: float | None = None,
) -> Number | None:
    """The number that a comparison shows beside `method`, or None where there is none.

    With `epochs` the number must be of that schedule; without, it is the comparison's (SCHEDULES).
    Of several the best status wins, then the first row of the file.
    """
    wanted, metric = SCHEDULES.get(method) if epochs is None else epochs, METRICS[eval][0]
    found = [
        each
        for each in numbers
        if (each.method, each.backbone, each.eval, each.metric) == (method, backbone, eval, metric)
        and (wanted is None or each.epochs == wanted)
    ]
    order = list(STATUSES)
    return min(found, key=lambda each: order.index(each.status), default=None)


def schedule(
    numbers: Sequence[Number], method: str, backbone: str, epochs: float | None
) -> float | None:
    """The schedule to show for a row that trained for `epochs`: the same one where the file has it.

    Elsewhere the comparison's own, so that a table never mixes the numbers of two schedules.
    """
    known = {each.epochs for each in numbers if (each.method, each.backbone) == (method, backbone)}
    return epochs if epochs in known else SCHEDULES.get(method)
