"""What two ranks do, as `python two_ranks_evaluations.py RANK DATA FOLDER`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny_evaluations import finetune, knn, linear, segmentation

from methods.engine import distributed
from methods.engine.work import Layout, Work

SHARDED = ", sharded"
# Dropout draws anew on each rank.
TASKS: dict[str, Any] = {
    "linear": linear(),
    "linear of fixed views": linear(views="fixed"),
    "finetune": finetune(drop_path=0.0),
    "finetune" + SHARDED: finetune(drop_path=0.0),
    "segmentation": segmentation(dropout=0.0, drop_path=0.0),
    "segmentation" + SHARDED: segmentation(dropout=0.0, drop_path=0.0),
    "knn": knn(),
}


def run_all(folder: Path, data: Path, layout: Layout) -> dict[str, dict[str, float]]:
    """The metrics of all tasks, each in a folder of its own."""
    metrics = {}
    for name, task in TASKS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        own = replace(layout, shard=name.endswith(SHARDED))
        work = Work(folder / name, data=data, layout=own)
        metrics[name] = task.run(work)
        told = str(work.report.get("execution"))
        assert (SHARDED in told) == (own.shard and layout.world > 1), (name, told)
    return metrics


def main(rank: int, data: Path, folder: Path) -> None:
    """Rank 0 leaves metrics.json."""
    torch.set_num_threads(1)
    metrics = run_all(folder, data, Layout(rank=rank, world=2, local_rank=rank))
    if rank == 0:
        (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    distributed.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
    os._exit(0)  # at the interpreter's own end torch's threads abort it now and then
