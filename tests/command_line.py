"""The command line as a user calls it. Not in conftest.py, a name that several folders have."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def harness(*words: object, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """`harness WORDS...` in a process of its own."""
    command = [sys.executable, "-m", "harness.cli", *map(str, words)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=900)
    if check and done.returncode:
        raise AssertionError(f"{command} left with {done.returncode}\n{done.stdout}{done.stderr}")
    return done
