"""Stages on several ranks of the real cluster: the numbers of one process, and a rank that dies."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from counting import Training
from lab import Lab, until

from methods.engine.work import Work

RANKS = {"nodes": 2, "tasks": 2}


def losses(folder: Path) -> list[float]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def alone(folder: Path) -> list[float]:
    """The losses of the same training in this process."""
    folder.mkdir()
    torch.set_num_threads(1)
    Training().run(Work(folder))
    return losses(folder)


def ranks_of(job: str) -> dict[int, int]:
    """Rank -> process id of a job's Python processes."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "environ").read_bytes().decode(errors="replace").split("\0")
            name = (process / "cmdline").read_bytes()
        except OSError:
            continue
        rank = next((word.split("=")[1] for word in words if word.startswith("SLURM_PROCID=")), "")
        if rank and f"SLURM_JOB_ID={job}" in words and b"submitit" in name:
            found[int(rank)] = int(process.name)
    return found


def test_two_nodes_with_two_ranks_train_as_one_process_does_also_after_one_has_died(
    make_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    hold = tmp_path / "go"
    lab = make_lab({"train": (Training(hold=str(hold)), [])}, **RANKS)
    lab.run()
    until(lambda: len(lab.steps("train")) >= 6, "six updates are done")
    job = lab.live("train")
    assert job is not None
    os.kill(ranks_of(job.job)[3], signal.SIGKILL)
    until(lambda: lab.live("train") is None, "one dead rank ends the job")
    assert not lab.done("train")
    hold.touch()
    assert lab.run() == 1
    until(lambda: lab.store.outcome(lab.folder("train")), "the training has ended")
    assert lab.done("train"), lab.log("train")
    assert losses(lab.folder("train")) == pytest.approx(alone(tmp_path / "alone"), rel=1e-4)
