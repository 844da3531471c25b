"""Drives a plan on this machine until nothing is left to do: so many stages at once, in order."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import exits
from harness.backends import Attempt, JobState
from harness.backends.local import LocalBackend
from harness.plan import Plan
from harness.reconcile import Decision, decide, live_jobs, ready
from harness.store import Outcome, Store, read_table
from harness.together import group_keys, open_attempts, split_into_jobs

Show = Callable[[Mapping[str, Decision]], None]
POLL_SECONDS = 0.25


@dataclass
class LocalRun:
    """One `harness run` on the local backend.

    `job` gives what job.json says for a stage kind (data root, layout, where), `provenance` what
    every stage.json says, `code` is the snapshot that runs, `retry` the keys whose cap is lifted.
    `together`: pretrainings that can share a process do.
    """

    store: Store
    plan: Plan
    backend: LocalBackend
    jobs: int
    job: Callable[[str], Mapping[str, Any]]
    provenance: Mapping[str, Any]
    code: Path
    retry: set[str] = field(default_factory=set)
    together: bool = False
    mine: dict[str, Attempt] = field(default_factory=dict)
    tried: set[str] = field(default_factory=set)
    memory_kills: int = field(default_factory=exits.memory_kills)

    def __post_init__(self) -> None:
        # The longest chain goes first, so that what needs it does not wait for a free slot twice.
        self.behind = stages_behind(self.plan)
        self.groups = group_keys(self.plan, self.together)

    def until_settled(self, show: Show) -> dict[str, Decision]:
        """Submits what is ready, as slots come free; returns the decisions when nothing is left.

        On Ctrl-C or SIGTERM the stages save their state and leave before KeyboardInterrupt goes on.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler)
        try:
            while True:
                decisions = self.step()
                show(decisions)
                if not any(each.state in ("running", "queued") for each in decisions.values()):
                    return decisions
                time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            self.stop()
            raise

    def step(self) -> dict[str, Decision]:
        """One look at everything, and as many submissions as there are free slots."""
        with self.store.lock():
            decisions = self.look()
            mine = [each.job for key, each in decisions.items() if key in self.mine]
            running = len({job.job for job in mine if job})
            # Of equals the last: a study names its dearest evaluation last, and what ends alone at
            # the end should be short.
            last = reversed(list(ready(decisions)))
            waiting = sorted(last, key=lambda each: -self.behind[each.stage.key])
            shared = split_into_jobs(waiting, self.groups, self.jobs)
            for members in shared[: max(0, self.jobs - running)]:
                self.submit(members)
            return self.look() if running < self.jobs else decisions

    def look(self) -> dict[str, Decision]:
        """The decisions, once the attempts of this run that died have been told as failed.

        A stage that failed in this run is not tried again by it.
        """
        live = live_jobs(self.store, self.plan, self.backend)
        self.bury(live)
        decisions = decide(self.store, self.plan, live, self.retry)
        return _settled(self.plan, decisions, self.tried)

    def submit(self, members: list[Decision]) -> None:
        """Opens an attempt at each stage of one job, starts it and records it."""
        attempts = open_attempts(
            self.store, self.plan, members, self.job, self.provenance, self.code
        )
        for decision, attempt in zip(members, attempts, strict=True):
            self.mine[decision.stage.key] = attempt
            self.tried.add(decision.stage.key)
            self.retry.discard(decision.stage.key)
        started = self.backend.submit(attempts[0])
        for attempt in attempts:
            self.store.update_attempt(attempt.folder, attempt.id, job_id=started)

    def bury(self, live: Mapping[str, JobState]) -> None:
        """Writes the outcome that a killed process could not write itself; none if it was asked
        to stop and saved its state."""
        for key, attempt in list(self.mine.items()):
            if key in live:
                continue
            del self.mine[key]
            job = read_table(attempt.place / "job.json") or {}
            if "stopped" in job or not attempt.folder.is_dir():
                continue
            if self.store.outcome(attempt.folder) is None:
                error = exits.told(attempt.place, self.memory_kills)
                outcome = Outcome("failed", error=error, attempt=attempt.id, finished=time.time())
                self.store.finish(attempt.folder, outcome)

    def stop(self) -> None:
        """Ends the stages of this run; each saves its state first."""
        live = live_jobs(self.store, self.plan, self.backend)
        self.backend.cancel({live[key].job for key in self.mine if key in live})


def _settled(
    plan: Plan, decisions: dict[str, Decision], tried: Collection[str]
) -> dict[str, Decision]:
    """The decisions, with what failed in this run left failed and what needs it blocked."""
    for key, stage in plan.stages.items():
        found = decisions[key]
        if not found.submit:
            continue
        if key in tried:
            ended = "stopped" if found.folder.is_dir() else "its folder was removed"
            why = found.outcome.reason if found.outcome else ended
            decisions[key] = Decision(stage, found.folder, "failed", why, outcome=found.outcome)
        elif stopped := [
            each.path
            for each in stage.needs.values()
            if decisions[each.key].state in ("failed", "blocked")
        ]:
            why = f"needs {stopped[0]}, which failed"
            decisions[key] = Decision(stage, found.folder, "blocked", why)
    return decisions


def stages_behind(plan: Plan) -> dict[str, int]:
    """By key, the length of the longest chain of stages that need the stage."""
    behind = dict.fromkeys(plan.stages, 0)
    for key, stage in reversed(list(plan.stages.items())):
        for needed in stage.needs.values():
            behind[needed.key] = max(behind[needed.key], behind[key] + 1)
    return behind
