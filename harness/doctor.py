"""`harness doctor`: whether stages could run here, one line a check, and what to do where not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import methods
from harness import provenance
from harness.backends import Attempt, Backend, BackendRefused, BackendUnavailable
from harness.cluster import Cluster
from harness.estimate import BENCH
from harness.study import Scale, load_scale, load_study
from harness.supply import supply
from harness.trial import Finding, smoke, smoke_profile
from methods.data.sets import Patchwork, PatchworkSegmentation
from methods.errors import InputError, StageError

GIGABYTE = 1e9
PROBLEM_GIGABYTES, WARNING_GIGABYTES = 1, 10


def run(options: Any, cluster: Cluster, backend_of: Callable[[Cluster], Backend]) -> int:
    """Prints every finding as it comes; 1 if there is a problem."""
    store, data = options.store, options.data or cluster.data_root
    found = []
    scale = load_scale(options.scale)
    if options.bench is not None and not options.bench.is_dir():
        raise InputError(f"--bench {options.bench}: no such folder")
    checks = examine(scale, cluster, store, data), supply(scale, cluster, options.bench or BENCH)
    for finding in chain(*checks):
        print(finding, flush=True)
        found.append(finding)
    if options.smoke:
        short = smoke_profile(cluster)
        for finding in smoke(short, backend_of(short), store, data, options.wait):
            print(finding, flush=True)
            found.append(finding)
    return int(any(each.level == "problem" for each in found))


def examine(scale: Scale, cluster: Cluster, store: Path, data: Path) -> Iterator[Finding]:
    """Every check that submits and builds nothing."""
    yield versions()
    yield from space(store)
    yield data_set(scale.data, data)
    yield data_set(scale.segmentation_data, data)
    for role, network in {**scale.teachers, **scale.tokenizers}.items():
        if getattr(network, "weights", ""):
            yield released(role, network, data)
    yield from mlflow(store)
    if cluster.backend == "slurm":
        yield from scheduler(cluster, store)
    else:
        yield gpu()


def versions() -> Finding:
    """Python and the packages."""
    found = provenance.versions()
    missing = [name for name in provenance.PACKAGES if name not in found and "harness" not in name]
    if missing:
        return Finding("problem", "packages", f"{', '.join(missing)}: not installed; `make setup`")
    return Finding("ok", "versions", ", ".join(f"{name} {text}" for name, text in found.items()))


def space(store: Path) -> Iterator[Finding]:
    """Whether the store can be written, and how much room it has."""
    place = store.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        yield Finding("problem", "store", f"{place} is not writable; choose another --store")
        return
    yield Finding("ok", "store", f"{store} is writable")
    free = shutil.disk_usage(place).free / GIGABYTE
    level: Any = "problem" if free < PROBLEM_GIGABYTES else "ok"
    level = "warning" if PROBLEM_GIGABYTES <= free < WARNING_GIGABYTES else level
    hint = "" if level == "ok" else "; `harness clean` removes checkpoints of finished stages"
    yield Finding(level, "disk", f"{free:.1f} GB free{hint}")


def data_set(value: Any, root: Path) -> Finding:
    """Whether a data set lies under the data root, whole; Patchwork may still have to be built."""
    name = type(value).__name__
    counts = f"{value.images('train'):,} + {value.images('validation'):,} images"
    told = f"{counts}, {len(value.classes)} classes"
    if isinstance(value, (Patchwork, PatchworkSegmentation)):
        there = value.folder(root).is_dir()
        return Finding("ok", name, told if there else f"{told}; `harness run` builds it in {root}")
    try:
        value.prepare(root)
    except (InputError, StageError) as error:
        return Finding("problem", name, str(error))
    return Finding("ok", name, told)


def released(role: str, value: Any, root: Path) -> Finding:
    """Whether released weights are there, by their digest where one is known.

    That they are missing is a problem only where a method of the comparison needs them.
    """
    from methods.teachers.archive import find_weights

    name = type(value).__name__
    try:
        path = find_weights(root, value)
    except (StageError, OSError) as error:
        users = [each for each in methods.names() if role in methods.get(each).needs]
        asked = any(row.method in users for row in load_study("comparison").all_rows())
        told = f"{error} (for {', '.join(users) or 'studies that name it'})"
        return Finding("problem" if asked else "warning", name, told)
    return Finding("ok", name, str(path))


def mlflow(store: Path) -> Iterator[Finding]:
    """Where MLflow's runs go, and whether an old file store lies about."""
    from harness.tracking.server import default_uri, own_uri, without_secrets

    uri = without_secrets(default_uri(store))
    yield Finding("ok", "MLflow", f"{uri} (a mirror; `harness sync` makes it level)")
    if Path("mlruns").is_dir():
        told = "./mlruns is an old file store, which MLflow refuses by now; to keep its runs: "
        move = f"mlflow migrate-filestore --source mlruns --target {own_uri(store)}"
        yield Finding("warning", "MLflow", f"{told}{move}")


def scheduler(cluster: Cluster, store: Path) -> Iterator[Finding]:
    """Whether Slurm answers, has the profile's partition, and would take its pretraining job."""
    from harness.backends.slurm import SlurmBackend

    backend = SlurmBackend(cluster)
    try:
        partitions = backend.partitions()
        backend.query([])
    except (BackendUnavailable, BackendRefused) as error:
        yield Finding("problem", cluster.name, f"Slurm does not answer: {error}")
        return
    names = {name for name, _ in partitions}
    yield Finding("ok", cluster.name, "; ".join(f"{name}: {nodes}" for name, nodes in partitions))
    if cluster.partition and not names >= set(cluster.partition.split(",")):
        told = f"no such partition; there are {', '.join(sorted(names))}"
        yield Finding("problem", f"partition {cluster.partition}", told)
    attempt = Attempt("check", store.absolute(), "pretrain", "pretrain/check")
    opinion = backend.test_only(attempt)
    level: Any = "ok" if "to start at" in opinion else "problem"
    yield Finding(level, "a pretraining job", opinion)


def gpu() -> Finding:
    """What this machine computes with."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(each) for each in range(torch.cuda.device_count())]
        return Finding("ok", "GPU", ", ".join(names))
    return Finding("warning", "GPU", "none is visible; the mini scale does with the CPU alone")
