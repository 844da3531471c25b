"""The healing job: when all jobs of a plan have ended, well or not, it runs `harness run` again.

Nothing of ours stays alive meanwhile. It submits what is missing then, and the next healing job
behind that, at most `heal` times in a row.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from harness.backends import Backend
from harness.backends.slurm import SlurmBackend
from harness.cluster import FLAGS, profile_path
from harness.plan import Plan
from harness.reconcile import live_jobs
from harness.store import Store
from harness.study import plan_name
from methods.values import fingerprint

LEFT = "HARNESS_HEALINGS_LEFT"  # how many healing jobs may follow, in the environment of one


def arrange(
    options: argparse.Namespace, plan: Plan, store: Store, backend: SlurmBackend, code: Path
) -> str:
    """Puts a healing job behind the plan's living jobs; its id, or "" where none is to follow.

    One that waits already is replaced. Raises BackendUnavailable or BackendRefused.
    """
    left = int(os.environ.get(LEFT, backend.cluster.heal))
    jobs = [state.job for state in live_jobs(store, plan, backend).values()]
    if left < 1 or not jobs:
        return ""
    call_off(plan, store, backend)
    python = backend.cluster.python or sys.executable
    command = ["env", f"{LEFT}={left - 1}", python, "-m", "harness.cli", *same_words(options)]
    name = f"heal/{plan_name(plan.study, plan.scale.name)}"
    logs = store.root.resolve() / "heal"
    logs.mkdir(exist_ok=True)
    return backend.submit_command(_comment(plan, store), name, command, jobs, logs, code)


def call_off(plan: Plan, store: Store, backend: Backend) -> None:
    """Cancels the plan's healing job, unless it is running (and is perhaps this process)."""
    found = backend.query([{"attempt": _comment(plan, store)}]).values()
    backend.cancel([each.job for each in found if each.state == "queued"])


def same_words(options: argparse.Namespace) -> list[str]:
    """`run` with what the command line said of the study, the store and the cluster.

    --retry is left out: a stage must not be done again each time.
    """
    words = ["run", f"--cluster={profile_path(options.cluster).resolve()}"]
    names = ("study", "scale", "methods", "evals", "seeds", "schedule", "store", "data", *FLAGS)
    for name in names:
        value = getattr(options, name.replace("-", "_"))
        if value not in (None, ""):
            words.append(f"--{name}={value}")
    words += ["--together"] * options.together
    for name, attribute in (("set", "changes"), ("weights", "weights"), ("sbatch", "sbatch")):
        words += [f"--{name}={value}" for value in getattr(options, attribute)]
    return words


def _comment(plan: Plan, store: Store) -> str:
    name = plan_name(plan.study, plan.scale.name)
    return f"heal-{fingerprint({'store': str(store.root.resolve()), 'plan': name})}"
