"""What the harness itself costs: plans and keys, a run with nothing to do, a report, MLflow.

The stages are made, not trained: each has the files that a finished one leaves, with a curve of as
many lines as `fit` writes. The commands are those of the command line, each a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness.bench.table import keep
from harness.plan import Plan, make_plan
from harness.reconcile import about_stage
from harness.report.markup import markdown_table
from harness.store import Outcome, Store, write_json
from harness.study import Study, StudyRow, load_scale, load_study, plan_name
from methods.errors import InputError
from methods.values import from_plain, to_plain

FORWARDED, POINTS = 8, 5000
"""Stages whose curves go to MLflow, and numbers in each."""
LINES = 100
CURVE = ("loss", "lr", "images_per_second", "progress")
SEEDS, PER_ROW = (0, 1, 2), 12
METRICS = {"linear": "top1", "finetune": "top1", "segmentation": "mIoU"}


def run(options: argparse.Namespace) -> int:
    """Measures everything and prints the rows, or keeps them in `options.out`."""
    from harness.bench.rows import Setting, machine

    sizes = numbers(options.driver)
    about = machine(Setting("cpu", 1, 1))
    rows = []
    for row in measured(sizes):
        rows.append({**row, "machine": about})
        if options.out is not None:
            keep(options.out / "driver.json", rows[-1])
    print(json.dumps(rows, indent=1) if options.format == "json" else render(rows))
    return 0


def numbers(words: str) -> list[int]:
    """The sizes of --driver, rising; InputError for anything else."""
    try:
        found = [int(word) for word in words.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 4 or found != sorted(set(found)):
        raise InputError(f"--driver {words}: expected rising numbers of stages from 4")
    return found


def measured(sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
    """A row for each part; of the sizes, all are planned and the largest is run and reported."""
    for size in sizes:
        yield planning(size)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "data").mkdir()
        made_study(root / "comparison", load_study("comparison"))
        yield command(root, "run", "comparison", "comparison")
        study = many(sizes[-1])
        made_study(root / study.name, study)
        (root / "many.toml").write_text(as_toml(study))
        yield command(root, "run", study.name, "many.toml")
        yield command(root, "status", study.name, "many.toml")
        report = ("--format", "md")
        yield command(root, "report", study.name, study.name, *report)
        yield command(root, "report", study.name, study.name, "--format", "html", "--out", "page")
        yield forwarding(root)


def many(stages: int) -> Study:
    """A study of so many stages or up to eleven more: a dozen for each change of MAE's masking."""
    count, evals = -(-stages // PER_ROW), tuple(METRICS)
    rows = (
        StudyRow("mae", f"v{number}", {"masking.ratio": 0.2 + 0.6 * number / count})
        for number in range(count)
    )
    return from_plain(Study, {
        "name": "many", "rows": [to_plain(row) for row in rows], "evals": evals, "seeds": SEEDS
    })  # fmt: skip


def as_toml(study: Study) -> str:
    """The study as a file."""
    lists = {"evals": study.evals, "seeds": study.seeds}
    lines = [f"{name} = {json.dumps(list(items))}" for name, items in lists.items()]
    for row in study.rows:
        lines += ["[[rows]]", f'method = "{row.method}"', f'variant = "{row.variant}"']
        lines += [f"set = {{ {json.dumps(name)} = {plain} }}" for name, plain in row.set.items()]
    return "\n".join([f'name = "{study.name}"', *lines, ""])


def planning(stages: int) -> dict[str, Any]:
    """Making the plan of a study, with every stage's key and what its stage.json says."""
    study, scale = many(stages), load_scale("mini")
    make_plan(many(PER_ROW), scale)  # imports
    began = time.process_time()
    plan = make_plan(study, scale)
    for stage in plan.stages.values():
        about_stage(plan, stage, {})
    seconds = time.process_time() - began
    return {
        "name": f"plan of {len(plan.stages)}",
        "stages": len(plan.stages),
        "processor_seconds": seconds,
    }


def made_study(root: Path, study: Study) -> Plan:
    """A store in which every stage of the study at the mini scale is done."""
    plan, store = make_plan(study, load_scale("mini")), Store(root).create()
    store.write_plan(plan_name(study, "mini"), {**plan.records(), "command": ["harness", "run"]})
    curve = made_curve(LINES)
    for number, stage in enumerate(plan.stages.values()):
        folder = root / stage.kind / stage.name
        folder.mkdir(parents=True)
        store.add(stage, about_stage(plan, stage, {"commit": "", "dirty": False}))
        (folder / "metrics.jsonl").write_text(curve)
        metrics = {METRICS.get(stage.kind, "loss"): 40 + number % 20 / 2}
        cost = {"seconds": 60.0, "images": 24000, "gflops": 12.0, "images_per_second": 400.0}
        outcome = Outcome("done", metrics, cost, finished=time.time())
        plain = to_plain(outcome, declared=Outcome)
        write_json(folder / "outcome.json", plain, sync=False)
    return plan


def made_curve(lines: int) -> str:
    """A metrics.jsonl of so many lines, each with the numbers of CURVE."""
    entries = (
        {"step": step, "time": 1.7e9 + step, **dict.fromkeys(CURVE, 1.0 / step)}
        for step in range(1, lines + 1)
    )
    return "".join(f"{json.dumps(entry)}\n" for entry in entries)


def command(root: Path, verb: str, store: str, study: str, *words: str) -> dict[str, Any]:
    """`harness VERB` on a store under `root`: processor's and clock's seconds, and its memory."""
    options = ["--store", store, "--study", study, *words]
    options += ["--data", "data"] if verb == "run" else []
    done = timed([sys.executable, "-m", "harness.cli", verb, *options], root)
    folders = sum(1 for _ in Store(root / store).folders())
    said = " ".join(words[:2])
    return {"name": f"{verb} {said} of {folders}".replace("  ", " "), "stages": folders, **done}


# Of a child that this process starts, the system would tell the memory of this one, if larger.
SMALL_PARENT = """
import json, os, subprocess, sys, time
began = time.perf_counter()
child = subprocess.Popen(sys.argv[2:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
found = [usage.ru_utime + usage.ru_stime, time.perf_counter() - began, usage.ru_maxrss]
open(sys.argv[1], "w").write(json.dumps(found))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def timed(words: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run a command that must succeed, its output thrown away; see `command`."""
    code = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(code)}
    parent = [sys.executable, "-S", "-c", SMALL_PARENT, "usage.json", *words]
    done = subprocess.run(parent, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words[2:])}: {done.stderr.strip().rpartition(chr(10))[2]}")
    processor, wall, memory = json.loads((folder / "usage.json").read_text())
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "processor_seconds": processor,
        "wall_seconds": wall,
        "memory_mb": memory * unit / 1e6,
    }


def forwarding(root: Path) -> dict[str, Any]:
    """`harness sync` of FORWARDED stages with POINTS numbers each, where a database is already."""
    place = root / "forwarded"
    made_study(place, Study("first", methods=("simmim",), evals=("linear",)))
    words = [sys.executable, "-m", "harness.cli", "sync", "--store", place.name, "--study"]
    timed([*words, "first"], root)
    evals: Any = tuple(METRICS)
    made_study(place, Study("second", methods=("mae",), evals=evals, seeds=SEEDS[: FORWARDED // 4]))
    for path in place.glob("*/*/metrics.jsonl"):
        path.write_text(made_curve(POINTS // len(CURVE)))
    name = f"sync of {FORWARDED} x {POINTS} points to MLflow"
    return {"name": name, "stages": FORWARDED, **timed([*words, "second"], root)}


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown."""
    columns = ("what", "stages", "processor, s", "ms a stage", "wall, s", "memory, MB")
    lines = [
        [
            str(row["name"]),
            f"{row['stages']:,}",
            f"{row['processor_seconds']:.2f}",
            f"{1000 * row['processor_seconds'] / row['stages']:.2f}",
            f"{row['wall_seconds']:.1f}" if "wall_seconds" in row else "-",
            f"{row['memory_mb']:.0f}" if "memory_mb" in row else "-",
        ]
        for row in rows
    ]
    about = rows[0]["machine"]
    note = f"made stages of the mini scale; {about['processor']}, {about['date']}"
    return f"{markdown_table(columns, lines)}\n\n{note}"
