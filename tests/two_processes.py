"""Two ranks of a script, as processes that meet on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent


def start_two(script: Path, folder: Path, *words: object) -> list[subprocess.Popen[bytes]]:
    """`script` with 0, and with 1, before the words; the errors of each go into `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": f"{PROJECT}:{script.parent}",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [
        subprocess.Popen(
            [sys.executable, script, str(rank), *map(str, words)],
            env=environment,
            stderr=(folder / f"errors{rank}").open("wb"),
        )
        for rank in (0, 1)
    ]


def wait_for_two(processes: list[subprocess.Popen[bytes]], folder: Path) -> str:
    """What they told of errors; "" where both have ended well."""
    codes = [process.wait(timeout=400) for process in processes]
    told = "".join((folder / f"errors{rank}").read_text() for rank in (0, 1))
    return "" if codes == [0, 0] else f"{codes} {told}"


def run_two(script: Path, folder: Path, *words: object) -> None:
    """Both to their ends, up to three times: another program may take the port before they do."""
    for _ in range(3):
        problem = wait_for_two(start_two(script, folder, *words), folder)
        if "could not meet" not in problem:
            break
    assert not problem, problem
