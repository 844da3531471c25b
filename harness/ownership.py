"""Who may write a stage: the process that took it last."""

from __future__ import annotations

import os
import secrets
import threading
import time
from pathlib import Path

from harness import provenance
from harness.store import read_table, write_json
from methods.errors import InputError, StageError

HEARTBEAT_SECONDS = 10.0


class Ownership:
    """The claim of this process on a stage: owner.json, kept fresh, and asked before each save."""

    def __init__(self, folder: Path, attempt: str, job: str) -> None:
        self.path = folder / "owner.json"
        self.token = secrets.token_hex(8)
        self.claim = {
            "token": self.token,
            "attempt": attempt,
            "job": job,
            "pid": os.getpid(),
            "host": provenance.host(),
            "since": time.time(),
        }
        self._ended = threading.Event()

    def take(self) -> None:
        """Writes the claim over whoever had one, and keeps its time fresh as a sign of life."""
        write_json(self.path, self.claim)
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            try:
                self.check()
                os.utime(self.path)
            except (OSError, StageError):
                return

    def check(self) -> None:
        """Raises StageError: "stopped" where another process has taken the stage since, "disk"
        where its folder is gone or cannot be read."""
        try:
            found = read_table(self.path)
        except InputError as error:
            raise StageError("disk", str(error)) from None
        if found is None:
            raise StageError("disk", f"{self.path.parent} was removed under the running stage")
        if found.get("token") != self.token:
            owner = found.get("attempt", "nobody")
            raise StageError("stopped", f"{self.path.parent.name} now belongs to {owner}")

    def holds(self) -> bool:
        """Whether the stage still belongs to this process."""
        try:
            self.check()
        except StageError:
            return False
        return True

    def leave(self) -> None:
        """Ends the sign of life."""
        self._ended.set()
