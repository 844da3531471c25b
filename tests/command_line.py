"""The command line as a user calls it. Not in conftest.py, a name that several folders have."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

# What must not be found in anything that a study leaves.
SECRET = "pl4nted-s3cret"
PLANTED = {
    "MLFLOW_TRACKING_USERNAME": "somebody",
    "MLFLOW_TRACKING_PASSWORD": f"{SECRET}-1",
    "MLFLOW_TRACKING_TOKEN": f"{SECRET}-2",
    "MLFLOW_TRACKING_URI": f"postgresql://somebody:{SECRET}-3@localhost:1/mlflow",
    "DATABASE_URL": f"postgresql://somebody:{SECRET}-4@localhost:1/other",
    "AWS_ACCESS_KEY_ID": f"AKIA{SECRET}-5",
    "AWS_SECRET_ACCESS_KEY": f"{SECRET}-6",
    "HF_TOKEN": f"hf_{SECRET}-7",
}


def harness(
    *words: object, cwd: Path, check: bool = True, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`harness WORDS...` in a process of its own, with these variables more."""
    command = [sys.executable, "-m", "harness.cli", *map(str, words)]
    environment = {**os.environ, **(variables or {})}
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=900, env=environment
    )
    if check and done.returncode:
        raise AssertionError(f"{command} left with {done.returncode}\n{done.stdout}{done.stderr}")
    return done
