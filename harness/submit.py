"""Submits a plan to a scheduler in one go: each missing stage a job, chained behind its needs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.backends import Attempt, Backend, BackendRefused
from harness.plan import Plan
from harness.reconcile import Decision, decide, live_jobs
from harness.store import Store
from harness.together import group_keys, open_attempts, split_into_jobs


def submit_plan(
    store: Store,
    plan: Plan,
    backend: Backend,
    job: Callable[[str], Mapping[str, Any]],
    provenance: Mapping[str, Any],
    retry: Collection[str] = (),
    code: Path | None = None,
    together: bool = False,
) -> tuple[dict[str, Decision], int]:
    """Submits what is missing; returns the decisions that were made and how many jobs that took.

    `job`: what job.json says for a stage of a kind. `together`: pretrainings that can share a job
    do.

    A child names its parents' jobs, whether they were submitted now or live already. Raises
    BackendUnavailable before anything was done, or BackendRefused with the scheduler's words after
    some jobs were; the next call goes on from there.
    """
    with store.lock():
        live = live_jobs(store, plan, backend)
        decisions = decide(store, plan, live, retry)
        jobs = {key: state.job for key, state in live.items()}
        submitted = 0
        for members in in_order(decisions, group_keys(plan, together)):
            needed = [each for one in members for each in one.stage.needs.values()]
            after = tuple(dict.fromkeys(jobs[each.key] for each in needed if each.key in jobs))
            attempts = open_attempts(store, plan, members, job, provenance, code, after)
            try:
                started = _submit(store, backend, attempts)
            except BackendRefused as error:
                before = f"; {submitted} jobs were submitted before it" * (submitted > 0)
                raise BackendRefused(f"{attempts[0].name}: {error}{before}") from None
            jobs |= dict.fromkeys((each.stage.key for each in members), started)
            submitted += 1
        return decisions, submitted


def in_order(
    decisions: Mapping[str, Decision], groups: Mapping[str, str], jobs: int = 1
) -> Iterator[list[Decision]]:
    """What is to be submitted, by job, the jobs that others need first. As `split_into_jobs`."""
    wanted = split_into_jobs([each for each in decisions.values() if each.submit], groups, jobs)
    job_of = {each.stage.key: members for members in wanted for each in members}
    given: set[str] = set()

    def of(key: str) -> Iterator[list[Decision]]:
        if key in given or key not in job_of:
            return
        given.update(each.stage.key for each in job_of[key])
        for each in job_of[key]:
            for needed in each.stage.needs.values():
                yield from of(needed.key)
        yield job_of[key]

    for key in job_of:
        yield from of(key)


def _submit(store: Store, backend: Backend, attempts: list[Attempt]) -> str:
    """The job's id, recorded; refused attempts leave nothing behind."""
    try:
        job = backend.submit(attempts[0])
    except BackendRefused:
        for attempt in attempts:
            shutil.rmtree(attempt.place)
        raise
    for attempt in attempts:
        store.update_attempt(attempt.folder, attempt.id, job_id=job)
    return job
