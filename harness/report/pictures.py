"""The pictures of the HTML page: what stages drew on the same validation images, and codebooks."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Iterator

from harness.report import chart, figures
from harness.report.build import Report
from harness.report.figures import ROWS
from harness.report.markup import Safe, element
from harness.report.rows import Row
from harness.report.table import clean

LARGEST = 1_000_000  # bytes of a file
ROOM = 8_000_000  # bytes of all files of a page
SIGNATURE = b"\x89PNG\r\n\x1a\n"
NOTE = (
    "Drawn by the stages when they finished, by the row's first seed that has pictures. What is "
    "checkered is left out: not seen, not predicted, or not labelled."
)


def pictures(report: Report, found: list[Row]) -> list[Safe]:
    """A block per row, then one per tokenizer; pictures/*.png of the stages as data URIs."""
    room = [ROOM]
    blocks = []
    for row in found[:ROWS]:
        label = f"{row.label}: "
        drawn = [part for files in _stages(report, row) for part in _figures(files, label, room)]
        if drawn:
            blocks += [element("h3", row.label), element("div", drawn, class_="pictures")]
    for key in tokenizers(report, found[:ROWS]):
        label = clean(report.plan["stages"][key].get("label", key))
        drawn = [*_figures(report.source.pictures(key), f"{label}: ", room), *_usage(report, key)]
        if drawn:
            title = element("h3", f"Tokenizer {label}")
            blocks += [title, element("div", drawn, class_="pictures")]
    return [element("p", NOTE, class_="quiet"), *blocks] if blocks else []


def _stages(report: Report, row: Row) -> Iterator[dict[str, bytes]]:
    """Files of the row's pretraining, then of its evaluations: the first seed's that has any."""
    pretrain = [each["pretrain_key"] for each in row.records]
    for keys in (pretrain, *([each["key"] for each in cell] for cell in row.cells.values())):
        found = (report.source.pictures(key) for key in dict.fromkeys(keys) if key)
        yield next((files for files in found if files), {})


def tokenizers(report: Report, found: Iterable[Row]) -> list[str]:
    """The keys of the tokenizers that the rows' pretraining needs."""
    stages = report.plan["stages"]
    needed = {
        key: None
        for row in found
        for each in row.records
        for key in (stages.get(each["pretrain_key"], {}).get("needs") or {}).values()
    }
    return [key for key in needed if stages.get(key, {}).get("kind") == "tokenizer"]


def _usage(report: Report, key: str) -> Iterator[Safe]:
    """How many codes a tokenizer used in the course of its training."""
    lines = report.source.history(key)
    for metric, title in (("usage", "Share of codes in use"), ("perplexity", "Perplexity")):
        steps, values = figures.steps(lines, metric)
        if len(steps) > 1:
            line = tuple(values)
            curve = chart.Curve(title, 0, tuple(steps), line, line, line)
            yield chart.curves(title, [curve], small=True)


def _figures(files: dict[str, bytes], label: str, room: list[int]) -> Iterator[Safe]:
    """The PNG files of one stage, as long as there is `room` for them."""
    for name, data in sorted(files.items()):
        if data.startswith(SIGNATURE) and len(data) <= min(LARGEST, room[0]):
            room[0] -= len(data)
            text = clean(description(data) or name)
            yield _figure(label + text, text, data)


def _figure(alt: str, caption: str, data: bytes) -> Safe:
    source = "data:image/png;base64," + base64.b64encode(data).decode()
    width, height = struct.unpack(">II", data[16:24].ljust(8, b"\0"))
    image = element("img", src=source, alt=alt, width=width or None, height=height or None)
    return element("figure", image, element("figcaption", caption))


def description(data: bytes) -> str:
    """The text under "Description" in a PNG file (its iTXt chunk); "" where there is none."""
    at = len(SIGNATURE)
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        if kind == b"iTXt":
            keyword, _, rest = data[at + 8 : at + 8 + length].partition(b"\0")
            if keyword == b"Description" and rest[:1] == b"\0":  # not compressed
                return rest[2:].split(b"\0", 2)[-1].decode("utf-8", "replace")
        at += 12 + length
    return ""
