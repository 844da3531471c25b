"""How a process that wrote no outcome ended: told by its exit code, and by the kernel's count."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from harness import exits, provenance
from harness.backends import Attempt
from harness.backends.local import LocalBackend
from harness.store import write_json


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    made = Attempt("first", tmp_path / "runs/linear/mae-s0-0123456789", "linear", "mae")
    made.place.mkdir(parents=True)
    write_json(made.place / "job.json", {"backend": "local"})
    return made


def test_a_signal_is_known_by_its_name(attempt: Attempt) -> None:
    backend = LocalBackend()
    job = backend.submit(attempt)
    os.kill(int(job.partition(".")[0]), signal.SIGSEGV)
    about = {"attempt": attempt.id, "job_id": job, "host": provenance.host()}
    until = time.monotonic() + 60
    while backend.query([about])[attempt.id].state != "dead" and time.monotonic() < until:
        time.sleep(0.01)
    told = exits.told(attempt.place, exits.memory_kills())
    assert told["reason"] == "killed" and told["message"].endswith("signal 11, SIGSEGV")


@pytest.mark.parametrize(
    ("code", "kills_before", "reason", "words"),
    [
        ("-9", exits.memory_kills() + 1_000_000, "killed", "signal 9, SIGKILL"),
        ("-9", -1, "memory", "as the kernel does for memory"),
        ("-15", -1, "killed", "signal 15, SIGTERM"),
        ("-63", -1, "killed", "signal 63"),
        ("7", -1, "code", "exit code 7"),
        ("", -1, "killed", "nobody saw how"),
    ],
)
def test_memory_is_blamed_only_where_the_kernel_killed_for_it(
    tmp_path: Path, code: str, kills_before: int, reason: str, words: str
) -> None:
    (tmp_path / exits.EXIT).write_text(code)
    told = exits.told(tmp_path, kills_before)
    assert told["reason"] == reason and words in told["message"]


def test_an_attempt_in_the_job_of_another_died_with_it(tmp_path: Path) -> None:
    host, guest = tmp_path / "host", tmp_path / "guest"
    host.mkdir()
    guest.mkdir()
    (host / "1_0_log.out").touch()
    (host / exits.EXIT).write_text("-9\n")
    (guest / "1_0_log.out").symlink_to(host / "1_0_log.out")
    assert exits.exit_code(guest) == -9
