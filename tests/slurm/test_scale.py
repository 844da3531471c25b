"""Five hundred stages: what submitting one costs beside a bare call of sbatch."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from counting import Counting
from lab import Lab

pytestmark = pytest.mark.long
STAGES = 500


def test_submitting_costs_little_more_than_sbatch(
    make_lab: Callable[..., Lab], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = {
        f"stage{number}": (Counting(f"stage{number}"), [f"stage{number - 1}"] * (number % 4 > 0))
        for number in range(STAGES)
    }
    lab = make_lab(wanted)
    for node in lab.slurm.nodes:  # nothing starts, so that submitting has the machine to itself
        lab.slurm.call("scontrol", "update", f"NodeName={node}", "State=DRAIN", "Reason=test")
    began = time.monotonic()
    assert lab.run() == STAGES
    ours = (time.monotonic() - began) / STAGES
    script = tmp_path / "bare.sh"
    script.write_text("#!/bin/bash\n#SBATCH --output=/dev/null --comment=bare\ntrue\n")
    began = time.monotonic()
    for _ in range(100):
        assert lab.slurm.call("sbatch", str(script)).returncode == 0
    bare = (time.monotonic() - began) / 100
    began = time.monotonic()
    assert lab.run() == 0
    look = time.monotonic() - began
    with capsys.disabled():
        print(
            f"\nper stage {ours * 1e3:.1f} ms, bare sbatch {bare * 1e3:.1f} ms, look {look:.2f} s"
        )
    assert ours < bare + 0.1  # 10 ms on a machine with nothing else to do
