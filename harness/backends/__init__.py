"""The seam to whatever runs stages: a backend submits attempts, says what lives, and cancels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol


class BackendUnavailable(Exception):
    """The scheduler does not answer: nothing is known, so nothing may be submitted."""


class BackendRefused(Exception):
    """The scheduler refused a submission (a limit, an invalid account), in its own words."""


@dataclass(frozen=True)
class Attempt:
    """One try at one stage. Its job.json is on disk before it is submitted."""

    id: str
    folder: Path  # the stage's folder
    kind: str
    name: str  # what people read in squeue
    after: Sequence[str] = ()  # ids of the jobs that must end well before
    code: Path | None = None  # a snapshot of the code, or None: the installed one

    @property
    def place(self) -> Path:
        """attempts/<id>/, with job.json and the logs."""
        return self.folder / "attempts" / self.id

    @property
    def place_on_nodes(self) -> Path:
        """`place` for another process: links to the store are followed, links inside it kept."""
        root = self.folder.parents[1].resolve()
        return root / self.folder.parent.name / self.folder.name / "attempts" / self.id


@dataclass(frozen=True)
class JobState:
    """What the scheduler says of a job that is still to end."""

    state: Literal["queued", "running", "dead"]
    job: str
    reason: str = ""
    node: str = ""


class Backend(Protocol):
    """One method a verb. Attempts are known by their own id: job numbers come again."""

    name: str

    def submit(self, attempt: Attempt) -> str:
        """The job's id. Raises BackendUnavailable or BackendRefused."""

    def query(self, attempts: Iterable[Mapping[str, object]]) -> dict[str, JobState]:
        """The state of each of these attempts (their job.json) that the backend knows.

        One question to the scheduler, however many. Raises BackendUnavailable.
        """

    def cancel(self, jobs: Iterable[str]) -> None:
        """Ends these jobs, which save their state where they can."""
