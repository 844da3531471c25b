"""The unified table of the methods, read off their values: a method is a row of parts."""

from __future__ import annotations

import json
from typing import Any

import methods
from harness.plan import Row, make_plan
from harness.study import Scale, Study

COLUMNS = ("method", "encoder", "masking", "hidden", "decoder", "objectives", "parameters")
HIDDEN = {"drop": "dropped", "token": "token"}


def overview(scale: Scale, form: str) -> str:
    """A Markdown or JSON table of every method at this scale, parameters counted without data."""
    names = methods.names()
    plan = make_plan(Study("methods", methods=names, evals=("linear",)), scale)
    rows = [_row(row) for row in plan.rows]
    if form == "json":
        return json.dumps(rows, indent=1)
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(_cell(row[name]) for name in COLUMNS) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return text.replace("|", "\\|")


def _row(row: Row) -> dict[str, Any]:
    method = row.value
    return {
        "method": method.name,
        "encoder": method.encoder.describe(),
        "masking": method.masking.describe(),
        "hidden": HIDDEN[method.encoder.hidden],
        "decoder": method.decoder.describe(),
        "objectives": "; ".join(each.describe() for each in method.objectives),
        "parameters": _parameters(row),
    }


def _parameters(row: Row) -> int:
    """Trainable parameters of encoder and decoder together."""
    from methods.networks.pretraining import count_parameters

    frozen = {role: stage.task for role, stage in row.stages["pretrain"].needs.items()}
    return count_parameters(row.value, frozen)
