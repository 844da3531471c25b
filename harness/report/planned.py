"""runs/studies/<name>.json as reports and mirrors read it: with all they rely on, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.claim import Claim
from harness.stage import EVALUATIONS
from harness.store import read_table
from methods.errors import InputError
from methods.values import LARGEST, did_you_mean, from_plain

# The fields of each table, and what they hold; a field of OPTIONAL may be missing.
STUDY = {"name": str, "scale": str, "title": str, "note": str, "claims": list}
ROW = {
    "method": str,
    "variant": str,
    "label": str,
    "seed": int,
    "stages": dict,
    "changed": dict,
    "encoder": str,
    "decoder": str,
    "target": str,
    "epochs": (int, float, type(None)),
}
STAGE = {"kind": str, "needs": dict, "label": str}
OPTIONAL = frozenset(
    ("title", "note", "claims", "changed", "encoder", "decoder", "target", "epochs")
)


def read_plan(path: Path) -> dict[str, Any] | None:
    """The plan in `path`, or None where there is no such file; InputError naming the field."""
    plan = read_table(path)
    if plan is None:
        return None
    check(plan, {"study": dict, "rows": list, "stages": dict}, str(path))
    check(plan["study"], STUDY, f"{path}.study")
    for number, claim in enumerate(plan["study"].get("claims", [])):
        from_plain(Claim, claim, f"{path}.study.claims.{number}")
    for number, row in enumerate(plan["rows"]):
        check(row, ROW, f"{path}.rows.{number}")
        words(row["stages"], f"{path}.rows.{number}.stages")
        for name in row["stages"]:
            kind, milestone, _ = name.partition("@")
            if milestone and kind not in EVALUATIONS:
                hint = did_you_mean(kind, EVALUATIONS)
                raise InputError(f"{path}.rows.{number}.stages.{name}: no evaluation{hint}")
    seen: set[str] = set()
    for key, stage in plan["stages"].items():
        check(stage, STAGE, f"{path}.stages.{key}")
        words(stage["needs"], f"{path}.stages.{key}.needs")
        if not seen.issuperset(stage["needs"].values()):  # else a stage could need itself
            raise InputError(f"{path}.stages.{key}.needs: expected stages that come before it")
        seen.add(key)
    if not isinstance(plan.get("command", []), list):
        raise InputError(f"{path}.command: expected a list")
    return plan


def check(plain: Any, fields: Mapping[str, Any], where: str) -> None:
    """Raise InputError unless `plain` is a table with these fields."""
    if not isinstance(plain, dict):
        raise InputError(f"{where}: expected a table, found {type(plain).__name__}")
    for name, wanted in fields.items():
        if name not in plain and name not in OPTIONAL:
            raise InputError(f"{where}.{name}: missing")
        if name in plain and not isinstance(plain[name], wanted):
            found = type(plain[name]).__name__
            raise InputError(f"{where}.{name}: cannot be of the kind {found}")
        if isinstance(plain.get(name), (int, float)) and not abs(plain[name]) < LARGEST:
            raise InputError(f"{where}.{name}: no number below 2^63")  # NaN neither


def words(plain: Mapping[str, Any], where: str) -> None:
    """Raise InputError unless all values are strings."""
    for name, value in plain.items():
        if not isinstance(value, str):
            raise InputError(f"{where}.{name}: expected a string, found {type(value).__name__}")
