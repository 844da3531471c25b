"""A plan joined with its outcomes: one record for every row of the study and evaluation."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.report.source import Source
from methods.errors import InputError

if TYPE_CHECKING:
    import pandas

Outcomes = Callable[[str], Mapping[str, Any]]

METRIC = {"linear": "top1", "finetune": "top1", "segmentation": "mIoU", "knn": "top1"}
SHORT = {"linear": "lin", "finetune": "ft", "segmentation": "seg", "knn": "knn"}

FIELDS = (
    "study",
    "scale",
    "row",
    "method",
    "variant",
    "seed",
    "label",
    "changed",
    "backbone",
    "decoder",
    "target",
    "epochs",
    "eval",
    "metric",
    "key",
    "state",
    "value",
    "reason",
    "command",
    "failed_key",
    "metrics",
    "device",
    "seconds",
    "images",
    "gflops",
    "pretrain_key",
    "pretrain_state",
    "pretrain_seconds",
    "pretrain_images",
    "pretrain_gflops",
    "finished",
    "commit",
)


def make_records(source: Source, plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One dict with FIELDS per row and evaluation of the plan, rows in the plan's order.

    An evaluation at a milestone of the schedule (`linear@50`) has one for the rows that have it.
    `state` is done, failed, running, queued, blocked, missing, or absent where the row has no such
    evaluation; `value` (per cent) is None unless done. Raises InputError for a damaged plan.
    """
    outcomes = functools.cache(source.outcome)  # a pretraining serves several evaluations
    try:
        kinds = evaluations(plan)
        return [
            _record(outcomes, plan, number, row, kind)
            for number, row in enumerate(plan["rows"])
            for kind in (*kinds, *(name for name in row["stages"] if "@" in name))
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the plan of the study is damaged ({error!r})") from None


def evaluations(plan: Mapping[str, Any]) -> list[str]:
    """The evaluations that any row of the plan has, in the order of the tables."""
    present = {kind for row in plan["rows"] for kind in row["stages"]}
    return [kind for kind in METRIC if kind in present]


def _record(
    outcomes: Outcomes, plan: Mapping[str, Any], number: int, row: Mapping[str, Any], kind: str
) -> dict[str, Any]:
    study, key, pretrain = plan["study"], row["stages"].get(kind), row["stages"].get("pretrain")
    absent: Mapping[str, Any] = {"state": "absent"}
    outcome = outcomes(key) if key else absent
    trained = outcomes(pretrain) if pretrain else absent
    state, reason, failed = _state(outcomes, plan, key, outcome)
    metrics, metric = dict(outcome.get("metrics") or {}), METRIC[kind.partition("@")[0]]
    value = metrics.get(metric) if state == "done" else None
    if state == "done" and value is None:
        state, reason = "failed", f"outcome.json has no {metric}"
    cost, before = outcome.get("cost") or {}, trained.get("cost") or {}
    return {
        "study": study["name"],
        "scale": study["scale"],
        "row": number,
        **{name: row[name] for name in ("method", "variant", "seed", "label")},
        "changed": dict(row.get("changed") or {}),
        "backbone": row.get("encoder", ""),
        "decoder": row.get("decoder", ""),
        "target": row.get("target", ""),
        "epochs": row.get("epochs") or None,
        "eval": kind,
        "metric": metric,
        "key": key,
        "state": state,
        "value": value,
        "reason": reason,
        "command": "" if state in ("done", "absent") else fill_command(plan, [failed]),
        "failed_key": failed,
        "metrics": metrics,
        "device": cost.get("device") or before.get("device") or "",
        **{name: cost.get(name) for name in ("seconds", "images", "gflops")},
        "pretrain_key": pretrain,
        "pretrain_state": trained["state"],
        **{f"pretrain_{name}": before.get(name) for name in ("seconds", "images", "gflops")},
        "finished": outcome.get("finished"),
        "commit": outcome.get("commit", ""),
    }


def _state(
    outcomes: Outcomes, plan: Mapping[str, Any], key: str | None, outcome: Mapping[str, Any]
) -> tuple[str, str, str | None]:
    """The state of a cell, the reason, and the key of the stage whose failure it is.

    A failed stage among those that it needs makes a cell "blocked".
    """
    state = str(outcome["state"])
    if state == "failed":
        return state, _why(outcome), key
    if state in ("done", "running", "absent") or key is None:
        return state, "", None
    culprit = failed_need(outcomes, plan, key)
    if culprit is None:
        return ("missing" if state == "blocked" else state), "", None
    kind = plan["stages"][culprit]["kind"]
    return "blocked", f"{kind} failed: {_why(outcomes(culprit))}", culprit


def _why(outcome: Mapping[str, Any]) -> str:
    error = outcome.get("error") or {}
    return f"{error.get('reason', 'code')}: {error.get('message', '')}".rstrip(": ")


def failed_need(outcomes: Outcomes, plan: Mapping[str, Any], key: str) -> str | None:
    """The first stage that failed among those that `key` needs, its own needs before itself."""
    for needed in plan["stages"].get(key, {}).get("needs", {}).values():
        found = failed_need(outcomes, plan, needed)
        if found is None and outcomes(needed)["state"] == "failed":
            found = needed
        if found is not None:
            return found
    return None


def fill_command(plan: Mapping[str, Any], failed: Sequence[str | None]) -> str:
    """The command that fills missing cells: the study's own, since running again adds what lacks.

    A stage that failed three times is only tried again when it is named, so `failed` are named.
    """
    study = plan["study"]
    words = ["harness", "run", "--study", study["name"], "--scale", study["scale"]]
    typed = [str(word) for word in plan.get("command") or ()]
    if typed[:2] == words[:2] and all(map(str.isprintable, typed)):  # it may be pasted
        words = _without_retry(typed)
    for key in dict.fromkeys(failed):
        words += ["--retry", key] if key else []
    return shlex.join(words)


def _without_retry(words: list[str]) -> list[str]:
    """What was typed, but for `--retry KEY`, which would redo stages that are done by now."""
    kept: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if not word.startswith("--retry") and before != "--retry":
            kept.append(word)
    return kept


def frame(records: list[dict[str, Any]]) -> pandas.DataFrame:
    """The records as a DataFrame with the columns FIELDS, numbers as floats (NaN: none)."""
    import pandas

    table = pandas.DataFrame(records, columns=list(FIELDS))
    numeric = [each for each in FIELDS if each.rpartition("_")[2] in _NUMBERS]
    table[numeric] = table[numeric].astype(float)
    return table


_NUMBERS = ("epochs", "value", "seconds", "images", "gflops", "finished")
