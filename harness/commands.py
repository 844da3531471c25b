"""What each command but `run` does, once the command line has been read."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from harness.cluster import load_cluster
from harness.launch import run_command as run_command
from harness.launch import told, watch
from harness.reconcile import decide, live_jobs, retry_keys
from harness.request import backend_of, known_jobs, shown_cluster, shown_plan
from harness.spent import spent
from harness.stale import stale
from harness.store import Store
from harness.study import load_scale
from harness.view import line, log_of, table
from methods.errors import InputError, one_line


def status_command(options: argparse.Namespace) -> int:
    """Shows every stage; for a failed one the reason and where its log is."""
    plan = shown_plan(options)
    store, backend = Store(options.store), backend_of(shown_cluster(options))
    if options.watch:
        return watch(store, plan, backend)
    decisions = decide(store, plan, known_jobs(store, plan, backend))
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(table(decisions))
    else:
        print("\n".join(line(decision) for decision in decisions.values()))
    for text in (*spent(decisions.values()), *stale(decisions.values())):
        print(text)
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
    for text in explain(store, store.match(options.key)).splitlines():
        print("  " * text.startswith("  ") + one_line(text))
    return 0


def cancel_command(options: argparse.Namespace) -> int:
    """Stops stages of the study, or the ones named."""
    plan = shown_plan(options)
    store, backend = Store(options.store), backend_of(shown_cluster(options))
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
    if not store.root.is_dir():
        raise InputError(f"--store {store.root}: no such folder")
    for folder in store.folders():
        outcome = store.outcome(folder)
        if outcome is None or not outcome.done:
            continue
        found = sorted((folder / "state").glob("*"), key=lambda path: path.stat().st_mtime)
        for path in found[: len(found) - options.keep_checkpoints]:
            freed += path.stat().st_size
            if not options.dry_run:
                path.unlink()
    print(f"{freed / 1e6:.1f} MB {'could be ' * options.dry_run}freed")
    return 0


def doctor_command(options: argparse.Namespace) -> int:
    """Checks what stages need of this machine or cluster."""
    from harness.doctor import run

    return run(options, load_cluster(options.cluster), backend_of)


def bench_command(options: argparse.Namespace) -> int:
    """Measures what a training step costs here, part by part."""
    from harness.bench import run

    return run(options)


def methods_command(options: argparse.Namespace) -> int:
    """Prints the unified table of the methods, from their values."""
    from harness.overview import overview

    print(overview(load_scale(options.scale), options.format, options.schedule))
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
    from harness.report.command import stem

    study, scale = (name and stem(name) for name in (options.study, options.scale))
    summary = tracking.sync(Store(options.store), options.mlflow_uri, study, scale)
    print(summary)
    return 1 if summary.error else 0


def ui_command(options: argparse.Namespace) -> int:
    """Serves MLflow's pages on the store, on this machine only unless told otherwise."""
    from harness import tracking
    from harness.tracking.server import check_port, default_uri, is_server, own_uri, without_secrets

    store, own = Store(options.store), own_uri(options.store)
    check_port(options.host, options.port)
    if is_server(named := default_uri(store.root)):
        named = without_secrets(named)
        print(f"MLFLOW_TRACKING_URI: runs are mirrored to {named}; here is the store's own file")
    print(tracking.sync(store, own), flush=True)
    tracking.serve(store, options.host, options.port)
    return 0
