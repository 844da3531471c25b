"""`harness run`: what a study lacks is run here, submitted to a cluster, or only shown."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from harness import provenance
from harness.backends import Backend, BackendRefused, BackendUnavailable
from harness.backends.local import LocalBackend
from harness.cluster import Cluster
from harness.drive import LocalRun
from harness.plan import Plan
from harness.reconcile import Decision, decide, live_jobs, retry_keys
from harness.request import asked_cluster, asked_plan, backend_of, known_jobs
from harness.snapshot import snapshot
from harness.store import Store
from harness.study import plan_name
from harness.submit import in_order, submit_plan
from harness.together import group_keys
from harness.view import log_of, watching
from methods.errors import InputError, StageError, one_line


def run_command(options: argparse.Namespace) -> int:
    """Runs or submits what the study still lacks."""
    plan = asked_plan(options)
    cluster = asked_cluster(options)
    jobs = _at_once(options, cluster)
    options.data = options.data or cluster.data_root
    if options.dry_run:
        return dry_run(options, plan, cluster, jobs)
    store = Store(options.store).create()
    retry = retry_keys(store, plan, options.retry)
    job = _jobs(options, cluster)
    record = {**plan.records(), "command": ["harness", *options.words]}
    store.write_plan(plan_name(plan.study, plan.scale.name), record)
    if cluster.backend == "slurm":
        return _submit(options, plan, cluster, store, retry, job)
    backend = LocalBackend()
    decisions = decide(store, plan, live_jobs(store, plan, backend), retry)
    if all(each.state == "done" for each in decisions.values()):
        print(f"nothing to do: all {len(decisions)} stages are done")
        return 0
    prepare_data(plan, options.data)
    about = provenance_of(store)
    running = LocalRun(store, plan, backend, jobs, job, *about, retry, options.together)
    with mirrored(store, plan), watching() as show:
        decisions = running.until_settled(show)
    return told(decisions)


def _at_once(options: argparse.Namespace, cluster: Cluster) -> int:
    """Stages at once on this machine. Raises InputError."""
    jobs = options.jobs if options.jobs is not None else cluster.jobs
    if jobs < 1:
        raise InputError(f"--jobs {jobs}: must be at least 1")
    return jobs


def _jobs(options: argparse.Namespace, cluster: Cluster) -> Callable[[str], dict[str, Any]]:
    """What job.json says, for each stage kind."""
    data = str(options.data.resolve())
    common = {"host": provenance.host(), "data": data, "commit": provenance.commit()}
    return lambda kind: {**common, **cluster.job(kind)}


def provenance_of(store: Store) -> tuple[dict[str, Any], Path]:
    """What stage.json says of the code, and the snapshot of it that the stages run."""
    code = snapshot(store.root)
    said = {"commit": provenance.commit(), "dirty": provenance.dirty(), "snapshot": code.name}
    return said, code


def prepare_data(plan: Plan, root: Path) -> None:
    """Builds or checks the data sets that the plan's stages read."""
    plan.scale.data.prepare(root)
    if "segmentation" in plan.study.evals:
        plan.scale.segmentation_data.prepare(root)


@contextmanager
def mirrored(store: Store, plan: Plan) -> Iterator[None]:
    """Mirrors the store into its MLflow database while the body runs."""
    from harness import tracking

    with tracking.following(store, plan_name(plan.study, plan.scale.name)):
        yield


def told(decisions: Mapping[str, Decision]) -> int:
    """Says why stages failed and where their logs are; the exit code."""
    failed = [each for each in decisions.values() if each.state == "failed"]
    for decision in failed:
        print(f"failed: {decision.stage.path}: {one_line(decision.why)}", file=sys.stderr)
        log = log_of(decision.folder)
        if log is not None:
            print(f"        log: {log}", file=sys.stderr)
    return 1 if any(each.state in ("failed", "blocked") for each in decisions.values()) else 0


def _submit(
    options: argparse.Namespace,
    plan: Plan,
    cluster: Cluster,
    store: Store,
    retry: set[str],
    job: Callable[[str], dict[str, Any]],
) -> int:
    from harness import heal
    from harness.backends.slurm import SlurmBackend

    prepare_data(plan, options.data)
    backend = SlurmBackend(cluster)
    said, code = provenance_of(store)
    refused = ""
    try:
        try:
            decisions, count = submit_plan(
                store, plan, backend, job, said, retry, code, options.together
            )
        except BackendRefused as error:  # a healing job submits what a limit has held back
            refused = f"{cluster.name}: {error}"
        healer = heal.arrange(options, plan, store, backend, code) if cluster.heal else ""
    except (BackendUnavailable, BackendRefused) as error:
        raise StageError("stopped", refused or f"{cluster.name}: {error}") from None
    follows = f"healing job {healer} follows them" if healer else ""
    if refused:
        raise StageError(
            "stopped", f"{refused}; {follows or 'the same command goes on from there'}"
        )
    done = sum(each.state == "done" for each in decisions.values())
    print(f"{count} jobs submitted to {cluster.name}; {done} of {len(decisions)} stages are done")
    if follows:
        print(follows)
    if options.watch:
        from harness.tracking.server import default_uri, is_server

        # To a server the jobs forward themselves.
        with nullcontext() if is_server(default_uri(store.root)) else mirrored(store, plan):
            return watch(store, plan, backend)
    return told(decisions)


def watch(store: Store, plan: Plan, backend: Backend) -> int:
    """Shows the stages until none is queued or running."""
    with watching() as show:
        while True:
            decisions = decide(store, plan, live_jobs(store, plan, backend))
            show(decisions)
            if not any(each.state in ("running", "queued") for each in decisions.values()):
                return told(decisions)
            time.sleep(2.0)


def dry_run(options: argparse.Namespace, plan: Plan, cluster: Cluster, at_once: int) -> int:
    """Prints the plan: what is done, what would run and why."""
    store = Store(options.store)
    retry = retry_keys(store, plan, options.retry)
    decisions = decide(store, plan, known_jobs(store, plan, backend_of(cluster)), retry)
    for decision in decisions.values():
        verb = "run" if decision.submit else decision.state
        print(f"{verb:8}{decision.stage.path:47} {one_line(decision.why)}")
    submit = sum(each.submit for each in decisions.values())
    print(f"{len(decisions)} stages, {submit} to run, on {cluster.name}")
    pieces = at_once if cluster.backend == "local" else 1
    for members in in_order(decisions, group_keys(plan, options.together), pieces):
        if len(members) > 1:
            print("one job for", ", ".join(each.stage.path for each in members))
    if cluster.backend == "slurm":
        _show_jobs(options, decisions, cluster)
    return 0


def _show_jobs(
    options: argparse.Namespace, decisions: Mapping[str, Decision], cluster: Cluster
) -> None:
    from harness.backends.slurm import SlurmBackend
    from harness.preview import jobs

    code = options.store / "snapshots" / "SNAPSHOT"
    for text in jobs(decisions, SlurmBackend(cluster), code, options.test_only):
        print(text)
