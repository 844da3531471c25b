"""Stages killed by four signals at random moments end as if they had never been stopped.

Weights, checkpoints, metrics.jsonl and the outcome's metrics are bit for bit those of the stage in
the comparison that nobody touched; work that is done again is at most one interval between
checkpoints, and is reported.
"""

from __future__ import annotations

import dataclasses
import random
import shutil
import time
from pathlib import Path

import pytest
from kill_trials import Trials

from harness.plan import make_plan
from harness.stage import Stage
from harness.store import Store
from harness.study import load_scale, load_study

KILLS = 100


def stages(*evals: str) -> list[Stage]:
    """The stages of the tiny comparison."""
    study = dataclasses.replace(load_study("comparison"), evals=evals)
    return list(make_plan(study, load_scale("tiny")).stages.values())


@pytest.fixture
def trials(comparison: Path, data: Path, tmp_path: Path) -> Trials:
    """In a copy of the comparison's store."""
    shutil.copytree(comparison / "runs", tmp_path / "runs")
    (code,) = (tmp_path / "runs" / "snapshots").iterdir()
    return Trials(Store(tmp_path / "runs"), data, random.Random(20250806), code)


def test_four_trials(trials: Trials) -> None:
    wanted = ("mae-s0", "mae-s0", "clip", "mae-s0")
    known = stages("linear", "segmentation")
    kinds = ("pretrain", "linear", "teacher", "pretrain")
    for label, kind in zip(wanted, kinds, strict=True):
        trials.trial(next(s for s in known if (s.label, s.kind) == (label, kind)))
    assert trials.counts["trials"] == 4 and trials.counts["kills"] >= 2


@pytest.mark.long
def test_a_hundred_trials_over_all_kinds_of_stages(trials: Trials) -> None:
    """Every stage of one method, the pretrainings of all, in turn.

    A signal may come when a stage has just ended: only those that stopped one are counted.
    """
    chosen = [
        stage
        for stage in stages("linear", "finetune", "segmentation", "knn")
        if stage.kind in ("teacher", "tokenizer", "pretrain") or stage.label == "milan-s0"
    ]
    assert {each.kind for each in chosen} == {
        "teacher", "tokenizer", "pretrain", "linear", "finetune", "segmentation", "knn",
    }  # fmt: skip
    began = time.monotonic()
    while trials.counts["kills"] < KILLS:
        trials.trial(chosen[trials.counts["trials"] % len(chosen)])
    print(f"{dict(trials.counts)} in {time.monotonic() - began:.0f} s")
