"""What two ranks do, as `python two_teacher_ranks.py RANK FOLDER DATA CLIP`."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from tiny_teachers import clip_task, vqkd_task

from methods.engine import distributed
from methods.engine.work import Layout, Work


def main(rank: int, folder: Path, data: Path, clip: Path) -> None:
    """Trains a teacher, and a tokenizer twice, together with the other rank."""
    torch.set_num_threads(1)
    layout = Layout(rank=rank, world=2, local_rank=rank)
    clip_task(image_image_weight=0.5).run(Work(folder / "clip", data=data, layout=layout))
    vqkd_task().run(Work(folder / "vqkd", {"clip": clip}, data, layout))
    vqkd_task().run(Work(folder / "sharded", {"clip": clip}, data, replace(layout, shard=True)))
    distributed.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), *(Path(word) for word in sys.argv[2:]))
    os._exit(0)  # at the interpreter's own end torch's threads abort it now and then
