"""Submits a plan to a scheduler in one go: each missing stage a job, chained behind its needs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from harness.backends import Attempt, Backend, BackendRefused
from harness.plan import Plan
from harness.run import Decision, about_stage, decide, live_jobs, open_attempt
from harness.store import Store


def submit_plan(
    store: Store,
    plan: Plan,
    backend: Backend,
    job: Callable[[str], Mapping[str, Any]],
    provenance: Mapping[str, Any],
    retry: Collection[str] = (),
    code: Path | None = None,
) -> tuple[dict[str, Decision], int]:
    """Submits what is missing; returns the decisions that were made and how many jobs that took.

    `job`: what job.json says for a stage of a kind.

    A child names its parents' jobs, whether they were submitted now or live already. Raises
    BackendUnavailable before anything was done, or BackendRefused with the scheduler's words after
    some jobs were; the next call goes on from there.
    """
    with store.lock():
        live = live_jobs(store, plan, backend)
        decisions = decide(store, plan, live, retry)
        jobs = {key: state.job for key, state in live.items()}
        submitted = 0
        for key, decision in decisions.items():
            if decision.submit:
                after = [jobs[n.key] for n in decision.stage.needs.values() if n.key in jobs]
                about = about_stage(plan, decision.stage, provenance)
                said = job(decision.stage.kind)
                attempt = open_attempt(store, decision, about, said, tuple(after), code)
                try:
                    jobs[key] = _submit(store, backend, attempt)
                except BackendRefused as error:
                    before = f"; {submitted} jobs were submitted before it" * (submitted > 0)
                    raise BackendRefused(f"{attempt.name}: {error}{before}") from None
                submitted += 1
        return decisions, submitted


def _submit(store: Store, backend: Backend, attempt: Attempt) -> str:
    """The job's id, recorded; a refused attempt leaves nothing behind."""
    try:
        job = backend.submit(attempt)
    except BackendRefused:
        shutil.rmtree(attempt.place)
        raise
    store.update_attempt(attempt.folder, attempt.id, job_id=job)
    return job
