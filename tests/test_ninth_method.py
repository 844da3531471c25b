"""A ninth method takes one file: the README's own, in a copy of the code, planned and trained."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.snapshot import CODE, sources

TRAIN = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from tiny_methods import frozen_folders, load, loader_batch, tiny
from methods.networks.pretrainer import MaskedModelling
from pathlib import Path

torch.set_num_threads(1)
torch.manual_seed(0)
method = tiny("mine")
method.check()
folder = Path("frozen")
folder.mkdir()
network = MaskedModelling(method, load(frozen_folders(folder)))
optimizer = torch.optim.AdamW(network.module.parameters(), lr=1e-3)
micros, losses = [loader_batch(method)], []
for step in range(3):
    with torch.no_grad():
        (micro,) = network.prepare(step, micros)
    loss = network.module(micro)["loss"]
    optimizer.zero_grad()
    loss.backward()
    assert all(each.grad is not None for each in network.module.parameters() if each.requires_grad)
    optimizer.step()
    losses.append(loss.item())
assert losses[2] < losses[0], losses
print("trained")
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages with one more file, which stands in the README."""
    place = tmp_path_factory.mktemp("copy")
    for path in [*sources(), CODE / "slurm" / "local.toml"]:
        to = place / path.relative_to(CODE)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to)
    blocks = re.findall(r"```python\n(.*?)```", (CODE / "README.md").read_text(), re.DOTALL)
    (text,) = [block for block in blocks if "METHOD = Method(" in block]
    (place / "methods" / "mine.py").write_text(text)
    return place


def python(copy: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(copy)}
    command = [sys.executable, *words]
    done = subprocess.run(
        command, cwd=copy, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_planned(copy: Path) -> None:
    told = python(copy, "-m", "harness.cli", "run", "--methods", "mine", "--dry-run")
    for stage in ("teacher/clip-", "pretrain/mine-s0-", "linear/mine-s0-", "segmentation/mine-s0-"):
        assert f"run     {stage}" in told


def test_it_is_a_row_of_the_table(copy: Path) -> None:
    told = python(copy, "-m", "harness.cli", "methods")
    assert "| mine | ViT-B/16 | random 0.6 | token | linear | CLIP projected tokens -> " in told


def test_it_trains(copy: Path) -> None:
    told = python(copy, "-c", TRAIN, str(CODE / "tests" / "methods"))
    assert told.endswith("trained\n")
