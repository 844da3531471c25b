"""Pretrainings that share a job, since they see the same images in the same order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.backends import Attempt
from harness.plan import Plan
from harness.reconcile import Decision, about_stage, open_attempt
from harness.stage import Stage
from harness.store import Store
from methods.pretrain import Pretraining
from methods.values import fingerprint, to_plain


def split_into_jobs(
    decisions: Iterable[Decision], groups: Mapping[str, str], jobs: int = 1
) -> list[list[Decision]]:
    """The decisions by job, in order: every group in `jobs` jobs of about equal size.

    groups: `group_keys` of the whole plan. A job begins with those of its stages that are given.
    """
    sizes = Counter(groups.values())
    found: dict[str, list[Decision]] = {}
    for decision in decisions:
        found.setdefault(groups[decision.stage.key], []).append(decision)
    return [
        part
        for group, members in found.items()
        for part in _split(members, -(-sizes[group] // jobs))
    ]


def _split(members: list[Decision], size: int) -> list[list[Decision]]:
    return [members[start : start + size] for start in range(0, len(members), size)]


def group_keys(plan: Plan, together: bool = True) -> dict[str, str]:
    """By key, what is equal for stages that can train together; the key for one that cannot.

    No stage is in one group with a stage that it needs, and no two groups need each other: those of
    one group have equally many stages before them.
    """
    return {
        key: _group_key(stage) if together and isinstance(stage.task, Pretraining) else key
        for key, stage in plan.stages.items()
    }


def _group_key(stage: Stage) -> str:
    task, method = stage.task, stage.task.method
    return fingerprint(
        {
            "before": _depth(stage),
            "data": to_plain(task.data),
            "augmentation": to_plain(method.augmentation),
            "grid": list(method.encoder.grid),
            "batch": method.optimisation.batch,
            "precision": method.optimisation.precision,
            "seed": task.seed,
            "threads": task.threads,
        }
    )


def _depth(stage: Stage) -> int:
    return max((1 + _depth(needed) for needed in stage.needs.values()), default=0)


def open_attempts(
    store: Store,
    plan: Plan,
    members: list[Decision],
    job: Callable[[str], Mapping[str, Any]],
    provenance: Mapping[str, Any],
    code: Path | None,
    after: tuple[str, ...] = (),
) -> list[Attempt]:
    """An attempt at each stage of one job: the first is the job's own, and names the others."""

    def open_one(decision: Decision, **more: Any) -> Attempt:
        about = about_stage(plan, decision.stage, provenance)
        return open_attempt(
            store, decision, about, {**job(decision.stage.kind), **more}, after, code
        )

    first, *others = members
    beside = [open_one(each) for each in others]
    places = [str(each.place_on_nodes) for each in beside]
    host = open_one(first, together=places) if places else open_one(first)
    for each in beside:
        store.update_attempt(each.folder, each.id, beside=host.id)
    return [host, *beside]
