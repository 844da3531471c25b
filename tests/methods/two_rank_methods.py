"""All methods by two ranks: `python two_rank_methods.py RANK FOLDER FROZEN DATA`."""

from __future__ import annotations

import sys
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


def run_all(folder: Path, frozen: Path, data: Path, rank: int, world: int) -> None:
    """4 updates of 8 images of each method and variant, without drop path, in `folder`/<method>."""
    for name in NAMES:
        method = tiny(name)
        method = replace(method, encoder=replace(method.encoder, drop_path=0.0))
        (folder / name).mkdir(parents=True, exist_ok=True)
        needs = {role: frozen / role for role in method.needs}
        layout = Layout(rank=rank, world=world, local_rank=rank)
        work = Work(folder=folder / name, needs=needs, data=data, layout=layout)
        Pretraining(method, DATA).run(work)


if __name__ == "__main__":
    torch.set_num_threads(1)
    places = [Path(each) for each in sys.argv[2:]]
    run_all(places[0], places[1], places[2], rank=int(sys.argv[1]), world=2)
    distributed.close()
