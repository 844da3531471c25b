"""All methods by two ranks: `python two_rank_methods.py RANK FOLDER FROZEN DATA [METHOD]`.

A METHOD that is named is trained alone, with compiled blocks that are computed a second time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tiny_methods import VARIANTS, tiny

import methods
from methods.data.sets import Patchwork
from methods.engine import distributed
from methods.engine.work import Layout, Work
from methods.pretrain import Pretraining

NAMES = (*methods.names(), *VARIANTS)
DATA = Patchwork(train=32, teacher=10, validation=10)


def run_all(
    folder: Path,
    frozen: Path,
    data: Path,
    rank: int,
    world: int,
    names: Sequence[str] = NAMES,
    **layout: bool,
) -> None:
    """4 updates of 8 images of each method and variant, without drop path, in `folder`/<method>."""
    for name in names:
        method = tiny(name)
        method = replace(method, encoder=replace(method.encoder, drop_path=0.0))
        (folder / name).mkdir(parents=True, exist_ok=True)
        needs = {role: frozen / role for role in method.needs}
        ranks = Layout(rank=rank, world=world, local_rank=rank, **layout)
        work = Work(folder=folder / name, needs=needs, data=data, layout=ranks)
        Pretraining(method, DATA).run(work)


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, places, named = int(sys.argv[1]), [Path(each) for each in sys.argv[2:5]], sys.argv[5:]
    executed = {"compile": True, "activation_checkpointing": True} if named else {}
    run_all(*places, rank=rank, world=2, names=named or NAMES, **executed)
    distributed.close()
    os._exit(0)  # at the interpreter's own end torch's threads abort it now and then
