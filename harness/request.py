"""What a command line asks for: a plan, a cluster, and the backend that runs it there."""

from __future__ import annotations

import argparse
import io
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from operator import itemgetter
from typing import Any

from harness.backends import Backend, BackendUnavailable, JobState
from harness.backends.local import LocalBackend
from harness.cluster import FLAGS, Cluster, load_cluster, with_flags
from harness.plan import Plan, make_plan
from harness.reconcile import live_jobs
from harness.store import Store, read_table
from harness.study import Study, load_scale, load_study
from methods.errors import InputError
from methods.values import from_plain, refuse_deep, to_plain

# Options that say themselves which rows are meant.
NARROWING = ("methods", "evals", "seeds", "changes", "schedule", "weights")


def asked_plan(options: argparse.Namespace) -> Plan:
    """The plan of the study with what the command line replaces in it."""
    study = load_study(options.study)
    if options.methods is not None:
        with _refused("--methods"):
            study = study.only(_words(options.methods))
    if options.schedule:
        with _refused("--schedule"):
            study = study.with_schedule(options.schedule)
    for word in options.weights:
        with _refused("--weights"):
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


@contextmanager
def _refused(option: str) -> Iterator[None]:
    """Tells what the study's own checks refuse as the option's fault."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"{option}: {error}") from None


def shown_plan(options: argparse.Namespace) -> Plan:
    """The plan that was last run under this study's name, unless the command line narrows it."""
    last = _last_run(options)
    if last is None or any(getattr(options, each) for each in NARROWING):
        return asked_plan(options)
    return asked_plan(last)


def shown_cluster(options: argparse.Namespace) -> Cluster:
    """The profile that --cluster names, else that of the study's last run."""
    last = _last_run(options)
    return load_cluster(options.cluster or (last.cluster if last else "local"))


def _last_run(options: argparse.Namespace) -> argparse.Namespace | None:
    """The command line that ran this study last, at the scale that `options` names if it does."""
    from harness.cli import parser

    name = load_study(options.study).name
    scale = load_scale(options.scale).name if options.scale else None
    newest: tuple[float, Any, Any] = (0.0, None, None)
    for path in (options.store / "studies").glob("*.json"):
        record = read_table(path) or {}
        about = record.get("study")
        about = about if isinstance(about, dict) else {}
        if about.get("name") == name and scale in (None, about.get("scale")):
            found = path.stat().st_mtime, path, record.get("command")
            newest = max(newest, found, key=itemgetter(0))
    _, path, words = newest
    if not isinstance(words, list) or not all(isinstance(each, str) for each in words):
        return None
    if words[:2] != ["harness", "run"]:
        return None
    said = io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(said):
            last = parser().parse_args(words[1:])
    except SystemExit:
        why = said.getvalue().rpartition("error: ")[2]
        raise InputError(f"{path}: command: {why}; `harness run` writes it anew") from None
    last.study, last.scale = options.study, options.scale or last.scale  # a path may be relative
    return last


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _weights(word: str) -> tuple[str, str]:
    method, equals, file = word.partition("=")
    if not (method and equals and file):
        raise InputError(f"--weights {word}: expected METHOD=FILE")
    return method, file


def _seed(word: str) -> int:
    if not (word.isdecimal() and len(word) < 11):
        raise InputError(f"--seeds: {word!r} is not a whole number")
    return int(word)


def parse_changes(words: Sequence[str]) -> dict[str, Any]:
    """`path=value` of --set, the value read as TOML where it is TOML and as a string elsewhere."""
    changes = {}
    for word in words:
        path, equals, text = word.partition("=")
        if not equals or not path or any(not part for part in path.split(".")):
            raise InputError(f"--set {word}: expected path=value, as in decoder.depth=2")
        try:
            table = tomllib.loads(f"value = {text}")
        except (ValueError, RecursionError):
            table = {"value": text}
        refuse_deep(table, f"--set {path}")
        changes[path] = table["value"] if len(table) == 1 else text
    return changes


def asked_cluster(options: argparse.Namespace) -> Cluster:
    """The profile, with sbatch's options from the command line over it."""
    given = {name: getattr(options, name.replace("-", "_")) for name in FLAGS}
    extra = dict(word.partition("=")[::2] for word in options.sbatch)
    flags = {name: value for name, value in given.items() if value is not None}
    return with_flags(load_cluster(options.cluster), flags, extra)


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
