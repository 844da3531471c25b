"""Reconciles the store with a plan: what is done, what lives, what would run and why."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.backends import Attempt, Backend, JobState
from harness.plan import Plan
from harness.stage import Stage
from harness.store import Outcome, Store, read_outcome
from methods.errors import InputError

State = Literal["done", "failed", "running", "queued", "blocked", "missing"]
ATTEMPTS = 3  # a stage that failed is tried this often before --retry has to ask for more


@dataclass(frozen=True)
class Decision:
    """What is to happen to one stage. `submit` is true where it lacks nothing but a job."""

    stage: Stage
    folder: Path
    state: State
    why: str
    submit: bool = False
    job: JobState | None = None
    outcome: Outcome | None = None


def live_jobs(store: Store, plan: Plan, backend: Backend) -> dict[str, JobState]:
    """The state of every job of the plan's unfinished stages, by the key of its stage."""
    asked: dict[str, str] = {}
    attempts: list[dict[str, Any]] = []
    for stage in plan.stages.values():
        folder = store.folder(stage)
        if not (folder / "outcome.json").exists():
            for attempt in store.attempts(folder):
                if not _elsewhere(attempt, folder):
                    asked[str(attempt.get("attempt"))] = stage.key
                    attempts.append(attempt)
    if not attempts:
        return {}
    states = backend.query(attempts)
    return {asked[name]: state for name, state in states.items() if state.state != "dead"}


def _elsewhere(attempt: Mapping[str, Any], folder: Path) -> bool:
    """Whether the attempt works in another folder, of which this one is a copy."""
    try:
        return not Path(str(attempt["folder"])).samefile(folder)
    except (KeyError, OSError, ValueError):  # the store was moved
        return False


def decide(
    store: Store, plan: Plan, live: Mapping[str, JobState], retry: Collection[str] = ()
) -> dict[str, Decision]:
    """A decision for every stage, parents first. `retry` holds keys whose cap is lifted."""
    decisions: dict[str, Decision] = {}
    for stage in plan.stages.values():
        decisions[stage.key] = _decide(store, stage, live.get(stage.key), decisions, retry)
    return decisions


def _decide(
    store: Store,
    stage: Stage,
    job: JobState | None,
    decisions: Mapping[str, Decision],
    retry: Collection[str],
) -> Decision:
    folder = store.folder(stage)
    outcome = store.outcome(folder)
    if outcome is not None and outcome.done and stage.key not in retry:
        return Decision(stage, folder, "done", "done", outcome=outcome)
    if job is not None:
        state: State = "running" if job.state == "running" else "queued"
        return Decision(stage, folder, state, job.reason or state, job=job)
    stopper = _stopped_by(stage, decisions)
    if stopper is not None:
        return Decision(stage, folder, "blocked", f"needs {stopper.stage.path}, which failed")
    why, submit = _why(folder, outcome, stage.key in retry)
    state = "failed" if outcome is not None and not outcome.done and not submit else "missing"
    return Decision(stage, folder, state, why, submit, outcome=outcome)


def _stopped_by(stage: Stage, decisions: Mapping[str, Decision]) -> Decision | None:
    """The needed stage that failed for good, if one did."""
    for needed in stage.needs.values():
        found = decisions[needed.key]
        if found.state in ("failed", "blocked"):
            return found
    return None


def _why(folder: Path, outcome: Outcome | None, retry: bool) -> tuple[str, bool]:
    if retry:
        return "asked for with --retry", True
    if outcome is not None:
        tries = failures(folder)
        if tries >= ATTEMPTS:
            return f"{outcome.reason} ({tries} attempts; --retry lifts the cap)", False
        return f"attempt {tries + 1} of {ATTEMPTS}, the last failed: {outcome.reason}", True
    if (folder / "state").is_dir() and any((folder / "state").iterdir()):
        return "goes on from its last checkpoint", True
    return "not done yet" if folder.is_dir() else "new", True


def failures(folder: Path) -> int:
    """How many attempts at the stage failed of themselves.

    Being stopped is no failure, nor is having started before what the stage needs was done.
    """
    paths = [*(folder / "attempts").glob("*/outcome.json"), folder / "outcome.json"]
    found = [each for each in map(read_outcome, paths) if each is not None and not each.done]
    return sum((each.error or {}).get("reason") != "needs" for each in found)


def ready(decisions: Mapping[str, Decision]) -> Iterator[Decision]:
    """The stages that could start now: to be submitted, with all they need done."""
    for decision in decisions.values():
        needed = decision.stage.needs.values()
        if decision.submit and all(decisions[each.key].state == "done" for each in needed):
            yield decision


def open_attempt(
    store: Store,
    decision: Decision,
    about: Mapping[str, Any],
    job: Mapping[str, Any],
    after: Sequence[str] = (),
    code: Path | None = None,
) -> Attempt:
    """The stage's folder and a new attempt in it, on disk before anything is submitted."""
    stage = decision.stage
    folder = store.add(stage, about)
    outcome = store.outcome(folder)
    if outcome is not None and outcome.done:
        store.archive_outcome(folder, everything=True)
    attempt = store.begin_attempt(folder, job)
    return Attempt(attempt, folder, stage.kind, stage.path, after, code)


def about_stage(plan: Plan, stage: Stage, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What stage.json tells people beside the task: which row of which study first needed it."""
    row = plan.owner(stage)
    # Of a row itself; the others are frozen networks, which may be pretrained encoders too.
    own = any(each.key == stage.key for each in row.stages.values())
    method = getattr(stage.task, "method", None)
    return {
        "study": plan.study.name,
        "scale": plan.scale.name,
        "method": row.method if own else method.name if method else stage.label,
        "variant": row.variant if own else "",
        "seed": row.seed if own else getattr(stage.task, "seed", 0),
        **provenance,
    }


def retry_keys(store: Store, plan: Plan, words: Collection[str]) -> set[str]:
    """The keys of the stages that a user names. Raises InputError for one not in the plan."""
    keys = set()
    for word in words:
        key = store.match(word).name.rpartition("-")[2]
        if key not in plan.stages:
            raise InputError(f"{word}: not a stage of study {plan.study.name}")
        keys.add(key)
    return keys
