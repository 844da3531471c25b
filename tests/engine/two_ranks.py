"""What two ranks do, as `python two_ranks.py RANK FOLDER`; rank 0 leaves results.pt in FOLDER."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from tiny_training import run
from torch import Tensor

from methods.engine import distributed
from methods.engine.work import Layout


def gathering(rank: int) -> dict[str, Tensor]:
    """Unequal rows of all ranks, and the gradient of a loss over them."""
    mine = torch.arange(6.0).view(3, 2)[: 3 - rank] + 10 * rank
    mine.requires_grad_()
    whole = distributed.gather(mine)
    (whole**2).mean().backward()
    assert mine.grad is not None
    flags = distributed.gather(torch.tensor([rank == 1]))
    # DDP would divide by the ranks.
    return {"rows": whole.detach(), "gradient": mine.grad / 2, "flags": flags}


def main(rank: int, folder: Path) -> None:
    """All that needs two processes, at once, because starting them is the slow part."""
    torch.set_num_threads(1)
    ranks: dict[str, Any] = {"rank": rank, "world": 2, "dropout": 0.0}
    distributed.setup(Layout(rank=rank, world=2, local_rank=rank))
    results = {
        "gather": gathering(rank),
        "reduced": distributed.all_reduce(torch.tensor([rank + 1.0])),
        "highest": distributed.all_reduce(torch.tensor([rank + 1.0]), "max"),
        "sent": distributed.broadcast(torch.tensor([rank + 5.0])),
        "told": distributed.broadcast_object({"rank": rank}),
        "even": run(folder / "even", device_batch=2, **ranks)[0],
        "uneven": run(folder / "uneven", batch=7, device_batch=3, **ranks)[0],
        "weighted": run(folder / "weighted", device_batch=3, weighted=True, **ranks)[0],
        "resumed": run(folder / "resumed", seen=str(folder / "seen"), **ranks)[0],
    }
    if rank == 0:
        torch.save(results, folder / "results.pt")
    distributed.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
    os._exit(0)  # at the interpreter's own end torch's threads abort it now and then
