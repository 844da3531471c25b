"""All methods by two ranks: `two_rank_methods.py RANK FOLDER FROZEN DATA [OPTION METHOD ..]`.

OPTION: "compiled" (with blocks that are computed a second time) or "sharded"; METHOD: in place of
all.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from tiny_methods import VARIANTS, tiny

import methods
from methods.data.sets import Patchwork
from methods.engine import distributed
from methods.engine.work import Layout, Work
from methods.errors import StageError
from methods.pretrain import Pretraining

NAMES = (*methods.names(), *VARIANTS)
SHARDED = {"shard": True, "activation_checkpointing": True}
OPTIONS: dict[str, tuple[dict[str, bool], ...]] = {
    "": ({},),
    "compiled": ({"compile": True, **SHARDED},),
    "sharded": ({}, SHARDED, {}, SHARDED),
}
"""Attempts at the stage: all but the last are stopped after one update."""
DATA = Patchwork(train=32, teacher=10, validation=10)


def run_all(
    folder: Path,
    frozen: Path,
    data: Path,
    rank: int,
    world: int,
    names: Sequence[str] = NAMES,
    option: str = "",
) -> None:
    """4 updates of 8 images of each method and variant, without drop path, in `folder`/<method>."""
    for name in names:
        method = tiny(name)
        method = replace(method, encoder=replace(method.encoder, drop_path=0.0))
        (folder / name).mkdir(parents=True, exist_ok=True)
        needs = {role: frozen / role for role in method.needs}
        *stopped, last = OPTIONS[option]
        for options in stopped:
            ranks = Layout(rank=rank, world=world, local_rank=rank, **options)
            work = Work(folder / name, needs, data, ranks, stop=lambda: "preempted")
            with suppress(StageError):
                Pretraining(method, DATA).run(work)
        ranks = Layout(rank=rank, world=world, local_rank=rank, **last)
        work = Work(folder / name, needs, data, ranks)
        Pretraining(method, DATA).run(work)
        if rank == 0:
            (folder / name / "execution").write_text(str(work.report["execution"]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, places, named = int(sys.argv[1]), [Path(each) for each in sys.argv[2:5]], sys.argv[5:]
    option, *names = named or ("", *NAMES)
    run_all(*places, rank=rank, world=2, names=names, option=option)
    distributed.close()
    os._exit(0)  # at the interpreter's own end torch's threads abort it now and then
