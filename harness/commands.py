"""What each command does, once the command line has been read."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import provenance
from harness.backends import Backend, BackendRefused, BackendUnavailable, JobState
from harness.backends.local import LocalBackend
from harness.cluster import FLAGS, Cluster, load_cluster, with_flags
from harness.drive import LocalRun
from harness.plan import Plan, make_plan, parse_changes
from harness.run import Decision, decide, live_jobs, retry_keys
from harness.snapshot import snapshot
from harness.store import Store, read_table
from harness.study import Study, load_scale, load_study, plan_name
from harness.view import line, log_of, table, watching
from methods.errors import InputError, StageError
from methods.values import from_plain, to_plain

# Options that say themselves which rows are meant.
NARROWING = ("methods", "evals", "seeds", "changes", "schedule", "weights")


def run_command(options: argparse.Namespace) -> int:
    """Runs or submits what the study still lacks."""
    plan = asked_plan(options)
    cluster = asked_cluster(options)
    options.data = options.data or cluster.data_root
    if options.dry_run:
        return dry_run(options, plan, cluster)
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
    jobs = options.jobs if options.jobs is not None else cluster.jobs
    if jobs < 1:
        raise InputError(f"--jobs {jobs}: must be at least 1")
    running = LocalRun(store, plan, backend, jobs, job, *provenance_of(store), retry)
    with mirrored(store, plan), watching() as show:
        decisions = running.until_settled(show)
    return told(decisions)


def asked_plan(options: argparse.Namespace) -> Plan:
    """The plan of the study with what the command line replaces in it."""
    study = load_study(options.study)
    if options.methods is not None:
        study = study.only(_words(options.methods))
    if options.schedule:
        study = study.with_schedule(options.schedule)
    for word in options.weights:
        study = study.with_weights(*_weights(word))
    lists: dict[str, Any] = {}
    if options.evals is not None:
        lists["evals"] = list(_words(options.evals))
    if options.seeds is not None:
        lists["seeds"] = [_seed(word) for word in _words(options.seeds)]
    if lists:
        study = from_plain(Study, {**to_plain(study, declared=Study), **lists}, "command line")
    scale = load_scale(options.scale or study.scale)
    return make_plan(study, scale, parse_changes(options.changes))


def shown_plan(options: argparse.Namespace) -> Plan:
    """The plan that was last run under this study's name, unless the command line narrows it."""
    study = load_study(options.study)
    name = plan_name(study, options.scale or study.scale)
    record = read_table(options.store / "studies" / f"{name}.json") or {}
    words = record.get("command", [])
    if any(getattr(options, each) for each in NARROWING) or words[:2] != ["harness", "run"]:
        return asked_plan(options)
    from harness.cli import parser

    return asked_plan(parser().parse_args(words[1:]))


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _weights(word: str) -> tuple[str, str]:
    method, equals, file = word.partition("=")
    if not (method and equals and file):
        raise InputError(f"--weights {word}: expected METHOD=FILE")
    return method, file


def _seed(word: str) -> int:
    if not word.isdecimal():
        raise InputError(f"--seeds: {word!r} is not a whole number")
    return int(word)


def provenance_of(store: Store) -> tuple[dict[str, Any], Path]:
    """What stage.json says of the code, and the snapshot of it that the stages run."""
    code = snapshot(store.root)
    said = {"commit": provenance.commit(), "dirty": provenance.dirty(), "snapshot": code.name}
    return said, code


def asked_cluster(options: argparse.Namespace) -> Cluster:
    """The profile, with sbatch's options from the command line over it."""
    given = {name: getattr(options, name.replace("-", "_")) for name in FLAGS}
    extra = dict(word.partition("=")[::2] for word in options.sbatch)
    flags = {name: value for name, value in given.items() if value is not None}
    return with_flags(load_cluster(options.cluster), flags, extra)


def _jobs(options: argparse.Namespace, cluster: Cluster) -> Callable[[str], dict[str, Any]]:
    """What job.json says, for each stage kind."""
    data = str(options.data.resolve())
    common = {"host": provenance.host(), "data": data, "commit": provenance.commit()}
    return lambda kind: {**common, **cluster.job(kind)}


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
        print(f"failed: {decision.stage.path}: {decision.why}", file=sys.stderr)
        log = log_of(decision.folder)
        if log is not None:
            print(f"        log: {log}", file=sys.stderr)
    return 1 if any(each.state in ("failed", "blocked") for each in decisions.values()) else 0


def dry_run(options: argparse.Namespace, plan: Plan, cluster: Cluster) -> int:
    """Prints the plan: what is done, what would run and why."""
    store = Store(options.store)
    retry = retry_keys(store, plan, options.retry)
    decisions = decide(store, plan, known_jobs(store, plan, backend_of(cluster)), retry)
    for decision in decisions.values():
        verb = "run" if decision.submit else decision.state
        print(f"{verb:8}{decision.stage.path:47} {decision.why}")
    submit = sum(each.submit for each in decisions.values())
    print(f"{len(decisions)} stages, {submit} to run, on {cluster.name}")
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


def known_jobs(store: Store, plan: Plan, backend: Backend) -> dict[str, JobState]:
    """The live jobs, or none and a warning where the scheduler does not answer."""
    try:
        return live_jobs(store, plan, backend)
    except BackendUnavailable as error:
        print(f"warning: {error}; stages may be further than shown", file=sys.stderr)
        return {}


def backend_of(cluster: Cluster) -> Backend:
    """The profile's backend: never guessed."""
    if cluster.backend == "local":
        return LocalBackend()
    from harness.backends.slurm import SlurmBackend

    return SlurmBackend(cluster)


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
    from harness.submit import submit_plan

    prepare_data(plan, options.data)
    backend = SlurmBackend(cluster)
    said, code = provenance_of(store)
    try:
        decisions, count = submit_plan(store, plan, backend, job, said, retry, code)
        healer = heal.arrange(options, plan, store, backend, code) if cluster.heal else ""
    except (BackendUnavailable, BackendRefused) as error:
        raise StageError("stopped", f"{cluster.name}: {error}") from None
    done = sum(each.state == "done" for each in decisions.values())
    print(f"{count} jobs submitted to {cluster.name}; {done} of {len(decisions)} stages are done")
    if healer:
        print(f"healing job {healer} follows them")
    if options.watch:
        return watch(store, plan, backend)
    return told(decisions)


def watch(store: Store, plan: Plan, backend: Backend) -> int:
    """Shows the stages until none is queued or running."""
    import time

    with watching() as show:
        while True:
            decisions = decide(store, plan, live_jobs(store, plan, backend))
            show(decisions)
            if not any(each.state in ("running", "queued") for each in decisions.values()):
                return told(decisions)
            time.sleep(2.0)


def status_command(options: argparse.Namespace) -> int:
    """Shows every stage; for a failed one the reason and where its log is."""
    plan = shown_plan(options)
    store, backend = Store(options.store), backend_of(load_cluster(options.cluster))
    if options.watch:
        return watch(store, plan, backend)
    decisions = decide(store, plan, known_jobs(store, plan, backend))
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(table(decisions))
    else:
        print("\n".join(line(decision) for decision in decisions.values()))
    told(decisions)
    return 0


def logs_command(options: argparse.Namespace) -> int:
    """Prints the newest log of a stage."""
    store = Store(options.store)
    folder = store.match(options.key)
    log = log_of(folder)
    if log is None:
        raise InputError(f"{folder}: no attempt has written a log yet")
    print(f"# {log}")
    print(log.read_text(errors="replace"), end="")
    return 0


def why_command(options: argparse.Namespace) -> int:
    """Says how a stage ended, and if it failed what can be done."""
    from harness.advice import explain

    store = Store(options.store)
    print(explain(store, store.match(options.key)))
    return 0


def cancel_command(options: argparse.Namespace) -> int:
    """Stops stages of the study, or the ones named."""
    plan = shown_plan(options)
    store, backend = Store(options.store), backend_of(load_cluster(options.cluster))
    if backend.name == "slurm":
        from harness.heal import call_off

        call_off(plan, store, backend)
    live = live_jobs(store, plan, backend)
    wanted = retry_keys(store, plan, options.keys) if options.keys else set(live)
    jobs = [state.job for key, state in live.items() if key in wanted]
    backend.cancel(jobs)
    print(f"{len(jobs)} jobs cancelled")
    return 0


def diff_command(options: argparse.Namespace) -> int:
    """Prints the fields in which two stages differ."""
    store = Store(options.store)
    first, second = (_flat(store.record(store.match(key))) for key in options.keys)
    for name in sorted(first.keys() | second.keys()):
        if first.get(name) != second.get(name):
            print(f"{name}: {first.get(name, '-')} | {second.get(name, '-')}")
    return 0


def _flat(record: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(record, list):
        record = {str(position): item for position, item in enumerate(record)}
    if not isinstance(record, dict):
        return {prefix: record}
    found: dict[str, Any] = {}
    for name, item in record.items():
        found |= _flat(item, f"{prefix}.{name}" if prefix else name)
    return found


def clean_command(options: argparse.Namespace) -> int:
    """Removes the checkpoints of stages that are done; nothing that a pending stage needs."""
    store, freed = Store(options.store), 0
    if options.keep_checkpoints < 0:
        raise InputError("--keep-checkpoints: must be 0 or more")
    for folder in store.folders():
        outcome = store.outcome(folder)
        if outcome is None or not outcome.done:
            continue
        found = sorted((folder / "state").glob("*"), key=lambda path: path.stat().st_mtime)
        for path in found[: len(found) - options.keep_checkpoints]:
            freed += path.stat().st_size
            if not options.dry_run:
                path.unlink()
    print(f"{freed / 1e6:.1f} MB {'could be' if options.dry_run else ''} freed")
    return 0


def doctor_command(options: argparse.Namespace) -> int:
    """Checks what stages need of this machine or cluster."""
    from harness.doctor import run

    return run(options, load_cluster(options.cluster), backend_of)


def methods_command(options: argparse.Namespace) -> int:
    """Prints the unified table of the methods, from their values."""
    from harness.overview import overview

    print(overview(load_scale(options.scale), options.format))
    return 0


def import_command(options: argparse.Namespace) -> int:
    """Puts a released checkpoint into the store as a finished pretrain stage."""
    from harness.released import bring_in

    return bring_in(options)


def export_command(options: argparse.Namespace) -> int:
    """Writes the encoder of a finished stage as one file for timm or mmpretrain."""
    from harness.released import take_out

    return take_out(options)


def report_command(options: argparse.Namespace) -> int:
    """Prints the study's tables, or writes them to files."""
    from harness import report

    return report.run(options)


def sync_command(options: argparse.Namespace) -> int:
    """Brings MLflow level with the store."""
    from harness import tracking

    summary = tracking.sync(Store(options.store), options.mlflow_uri, options.study)
    print(summary)
    return 1 if summary.error else 0


def ui_command(options: argparse.Namespace) -> int:
    """Serves MLflow's pages on the store, on this machine only unless told otherwise."""
    from harness import tracking

    tracking.serve(Store(options.store), options.host, options.port)
    return 0
