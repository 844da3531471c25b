"""Cards of the HTML page: what ran under which protocol, in which environment; missing cells."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from harness.report.build import Report
from harness.report.figures import ROWS
from harness.report.markup import Safe, element
from harness.report.records import fill_command
from harness.report.rows import Row
from harness.report.table import clean

HIDDEN = ("seed", "threads")
WORDS = {"missing": "pending"}  # as the tables say it


def flat(plain: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted fields and their values: `decoder.depth`, `8`. The type of a part is its own value."""
    if isinstance(plain, Mapping) and plain:
        for name, value in plain.items():
            yield from flat(value, path if name == "type" else f"{path}.{name}".lstrip("."))
    elif isinstance(plain, list) and any(isinstance(each, Mapping) for each in plain):
        for index, value in enumerate(plain):
            yield from flat(value, f"{path}.{index}".lstrip("."))
    else:
        yield path, plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def protocols(report: Report, found: list[Row], evals: list[str]) -> list[Safe]:
    """A card per method, and one per evaluation: what all rows share, then where they differ."""
    cards = []
    for row in found[:ROWS]:
        task = _task(report, row.first["pretrain_key"])
        method = task.get("method", task)
        if method:
            cards.append(_card(row.label, dict(flat(method))))
    for kind in evals:
        fields = {row.label: _fields(report, row, kind) for row in found[:ROWS]}
        fields = {label: each for label, each in fields.items() if each}
        if fields:
            cards.append(_evaluation_card(kind, fields))
    return cards


def _task(report: Report, key: str | None) -> Mapping[str, Any]:
    task: Mapping[str, Any] = (report.source.stage(key).get("task") if key else None) or {}
    return {name: value for name, value in task.items() if name not in HIDDEN}


def _fields(report: Report, row: Row, kind: str) -> dict[str, str]:
    keys = [each["key"] for each in row.cell(kind) if each["key"]]
    task = _task(report, keys[0] if keys else None)
    own = {name: value for name, value in task.items() if name != "encoder"}
    return dict(flat(own)) if own else {}


def _card(title: str, fields: Mapping[str, str], *more: Safe) -> Safe:
    return element(
        "details",
        element("summary", title),
        element(
            "dl", [[element("dt", clean(k)), element("dd", clean(v))] for k, v in fields.items()]
        ),
        *more,
        class_="card",
    )


def _evaluation_card(kind: str, fields: Mapping[str, Mapping[str, str]]) -> Safe:
    first = next(iter(fields.values()))
    shared = {
        name: value
        for name, value in first.items()
        if all(each.get(name) == value for each in fields.values())
    }
    rows = [
        element("li", element("b", label), ": ", _differing(each, shared))
        for label, each in fields.items()
        if len(each) > len(shared)
    ]
    more = [element("h4", "Differs by row"), element("ul", rows)] if rows else []
    return _card(f"{kind} protocol", shared, *more)


def _differing(fields: Mapping[str, str], shared: Mapping[str, str]) -> str:
    own = {name: value for name, value in fields.items() if name not in shared}
    return clean(", ".join(f"{name} {value}" for name, value in own.items()))


def environment(report: Report) -> Safe:
    """Versions, devices and commits of the stages that are done; several where they differ."""
    found: dict[str, dict[str, None]] = {}
    seen = dict.fromkeys(k for r in report.records for k in (r["pretrain_key"], r["key"]) if k)
    for key in list(seen)[: 8 * ROWS]:
        outcome = report.source.outcome(key)
        facts = {
            "commit": str(outcome.get("commit") or "")[:10],
            "device": (outcome.get("cost") or {}).get("device"),
        }
        for name, value in {**facts, **(outcome.get("versions") or {})}.items():
            if value:
                found.setdefault(clean(name), {})[clean(value)] = None
    items = [
        [element("dt", name), element("dd", ", ".join(values))] for name, values in found.items()
    ]
    return element("dl", items) if items else element("p", "Nothing is done yet.")


def missing(report: Report) -> Safe | None:
    """Every cell without a number: its state, the reason, and the command that fills it."""
    rows = [each for each in report.records if each["state"] not in ("done", "absent")]
    if not rows:
        return None
    head = [element("th", text, scope="col") for text in ("Row", "Cell", "State", "Reason")]
    body = [
        element(
            "tr",
            element("th", clean(each["label"]), scope="row"),
            element("td", each["eval"]),
            element(
                "td",
                element(
                    "span", WORDS.get(each["state"], each["state"]), class_=f"state {each['state']}"
                ),
            ),
            element("td", clean(each["reason"]) or "–"),
        )
        for each in rows[:500]
    ]
    command = fill_command(report.plan, [each["failed_key"] for each in rows])
    table = element("table", element("thead", element("tr", head)), element("tbody", body))
    return element(
        "section",
        element("h2", "Missing cells"),
        element(
            "p", f"{len(rows)} of {_planned(report)} planned cells have no number. To fill them:"
        ),
        _command(command),
        element("div", table, class_="wide"),
        id="missing",
    )


def _planned(report: Report) -> int:
    return sum(each["state"] != "absent" for each in report.records)


def _command(text: str) -> Safe:
    copy = element("button", "Copy", type="button", data_copy=text)
    return element("div", element("code", text), copy, class_="command")
