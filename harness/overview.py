"""The unified table of the methods, read off their values: a method is a row of parts."""

from __future__ import annotations

import json
from typing import Any

import methods
from harness.plan import Row, make_plan
from harness.report.markup import markdown_table
from harness.study import Scale, Study
from methods.errors import InputError
from methods.values import did_you_mean

COLUMNS = ("method", "encoder", "masking", "hidden", "decoder", "objectives", "parameters")
HIDDEN = {"drop": "dropped", "token": "token"}


def overview(scale: Scale, form: str, schedule: str = "") -> str:
    """A Markdown or JSON table of every method at this scale, parameters counted without data.

    With `schedule`, of the methods that have this further one, such as "large"; InputError where
    none has.
    """
    known = {name: methods.schedules(name) for name in methods.names()}
    names = tuple(name for name in known if not schedule or schedule in known[name])
    if not names:
        hint = did_you_mean(schedule, {each for schedules in known.values() for each in schedules})
        raise InputError(f"--schedule: no method has {schedule!r}{hint}")
    study = Study("methods", methods=names, evals=("linear",))
    plan = make_plan(study.with_schedule(schedule) if schedule else study, scale)
    rows = [_row(row) for row in plan.rows]
    if form == "json":
        return json.dumps(rows, indent=1)
    return markdown_table(COLUMNS, [[_cell(row[name]) for name in COLUMNS] for row in rows])


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
