"""What `status` and `cancel` are about when the command line does not say: the last run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.cli import parser
from harness.request import asked_plan, shown_cluster, shown_plan
from harness.store import Store
from harness.study import plan_name
from methods.errors import InputError


def ran(root: Path, when: float, *words: str) -> None:
    """Leaves what `harness run WORDS...` leaves of its command line."""
    plan = asked_plan(parser().parse_args(["run", *words]))
    store, name = Store(root).create(), plan_name(plan.study, plan.scale.name)
    store.write_plan(name, {**plan.records(), "command": ["harness", "run", *words]})
    os.utime(root / "studies" / f"{name}.json", (when, when))


def shown(root: Path, *words: str) -> tuple[str, str, list[str]]:
    """Scale, cluster and labels of the rows that `harness status WORDS...` shows."""
    options = parser().parse_args(["status", "--store", str(root), *words])
    plan = shown_plan(options)
    return plan.scale.name, shown_cluster(options).name, [row.label for row in plan.rows]


def test_the_last_run_is_shown_with_its_scale_and_cluster(tmp_path: Path) -> None:
    few = ("--methods", "mae", "--evals", "finetune")
    assert shown(tmp_path)[:2] == ("mini", "local")
    ran(tmp_path, 200.0, "--scale", "paper", "--cluster", "preemptible-short", *few)
    ran(tmp_path, 100.0, "--seeds", "3", *few)
    rows = ["mae-s0", "scratch-s0"]
    assert shown(tmp_path) == ("paper", "preemptible-short", rows)
    assert shown(tmp_path, "--scale", "mini") == ("mini", "local", ["mae-s3", "scratch-s3"])
    assert shown(tmp_path, "--cluster", "dev") == ("paper", "dev", rows)
    assert shown(tmp_path, "--methods", "milan", "--seeds", "1")[2][0] == "milan-s1"
    assert shown(tmp_path, "--study", "milan")[:2] == ("mini", "local")


def test_a_profile_that_is_gone_is_named(tmp_path: Path) -> None:
    ran(tmp_path, 100.0, "--cluster", "gone.toml")
    with pytest.raises(InputError, match="--cluster gone.toml: no such profile"):
        shown(tmp_path)
