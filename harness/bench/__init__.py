"""`harness bench`: what a training step costs, part by part, here and on paper elsewhere."""

from __future__ import annotations

import argparse
import itertools
from typing import Any

from harness.bench.projection import GPUS
from harness.bench.table import listed, render, write
from harness.study import load_scale
from methods.errors import InputError
from methods.values import did_you_mean

PEERS = ("mmpretrain", "official", "one-rate")
DEFAULT = "milan,beitv2,maskdistill,mae"


def run(options: argparse.Namespace) -> int:
    """Measures each method's step and prints the rows, or keeps them in `options.out`."""
    check(options)
    if options.loading:
        from harness.bench.loading import run as loading

        return loading(options)
    if options.driver is not None:
        from harness.bench.driver import run as driver

        return driver(options)
    from harness.bench.evaluations import evaluation_subjects, uncounted
    from harness.bench.rows import Setting, machine, row
    from harness.bench.subject import subjects

    evals = listed(options.evals or "")
    names = listed(options.methods or ("" if evals else DEFAULT))
    scale = load_scale(options.scale)
    setting = Setting(
        device=options.device,
        batch=options.batch,
        steps=options.steps,
        precision=options.precision,
        peer=options.peer,
        peer_precision=options.peer_precision,
        gpus=tuple(GPUS[name] for name in options.gpu),
        threads=scale.threads,
        busy=options.busy,
        compile=options.compile,
    )
    about = machine(setting)
    rows: list[dict[str, Any]] = []
    pretrainings = subjects(names, scale, setting.precision, setting.batch)
    evaluations = evaluation_subjects(evals, scale, setting.precision, setting.batch)
    for subject in itertools.chain(pretrainings, evaluations):
        found = {**row(subject, setting), **uncounted(subject)}
        rows.append({**found, "scale": scale.name, "machine": about})
        if options.out is not None:
            write(options.out, rows[-1])
    print(render(rows, options.format))
    return 0


def check(options: argparse.Namespace) -> None:
    """Raise InputError for numbers and names that cannot be measured."""
    for name in ("batch", "steps"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name} {getattr(options, name)}: must be at least 1")
    if options.peer not in (None, *PEERS):
        raise InputError(f"--peer: no {options.peer!r} is known{did_you_mean(options.peer, PEERS)}")
    for name in options.gpu:
        if name not in GPUS:
            raise InputError(f"--gpu: no figures of {name!r}{did_you_mean(name, GPUS)}")
