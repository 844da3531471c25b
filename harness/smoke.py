"""A stage of seconds that tries what stages need of a cluster: `harness doctor --smoke`."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from harness import provenance
from harness.store import read_table, write_json
from methods.engine.work import Work
from methods.errors import StageError


@dataclass(frozen=True)
class Smoke:
    """Every rank leaves what it found in findings/<rank>.json of the stage's folder.

    token: makes each of these stages another one.
    """

    kind: ClassVar[str] = "smoke"
    version: ClassVar[int] = 1

    token: str
    seed: int = 0
    threads: int = 0

    def run(self, work: Work) -> dict[str, float]:
        """{"ranks", "sum"}; `sum` is 1 + 2 + ... over the ranks, computed by all of them.

        Raises StageError: "layout" where the ranks do not meet or the sum is wrong, "disk" where a
        checkpoint does not come back as it was.
        """
        import torch

        from methods.engine import distributed

        device = distributed.setup(work.layout)
        mine = torch.full((1,), work.layout.rank + 1.0, device=device)
        total = float(distributed.all_reduce(mine))
        world = work.layout.world
        if total != world * (world + 1) / 2:
            raise StageError("layout", f"the sum over {world} ranks is wrong: {total:g}")
        self._tell(work, device.type)
        if work.layout.rank == 0:
            _try_checkpoint(work.folder / "state")
        distributed.all_reduce(torch.ones(1, device=device))  # until every rank has told
        return {"ranks": float(world), "sum": total}

    def _tell(self, work: Work, device: str) -> None:
        entries: list[str] | None = None
        with contextlib.suppress(OSError):
            names = sorted(path.name for path in work.data.iterdir())
            entries = [name for name in names if not name.startswith(".")][:20]
        found = {
            "node": os.environ.get("SLURMD_NODENAME") or provenance.host(),
            "device": provenance.device() if device == "cuda" else "cpu",
            "visible": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
            "data": entries,
        }
        folder = work.folder / "findings"
        folder.mkdir(exist_ok=True)
        write_json(folder / f"{work.layout.rank}.json", found)


def _try_checkpoint(folder: Path) -> None:
    import torch

    from methods.engine import checkpoint

    numbers = torch.arange(1000.0)
    path = checkpoint.save(folder, 1, {"numbers": numbers})
    if not torch.equal(checkpoint.read(path)["numbers"], numbers):
        raise StageError("disk", f"{path}: did not come back as it was written")


def findings(folder: Path) -> list[dict[str, object]]:
    """What the ranks told, rank 0 first."""
    paths = sorted((folder / "findings").glob("*.json"), key=lambda path: int(path.stem))
    return [found for path in paths if (found := read_table(path)) is not None]
