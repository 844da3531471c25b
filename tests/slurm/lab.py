"""What the tests on Slurm share: a store, a plan of counting stages, and ways to wait for facts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cluster import Cluster as DevCluster
from counting import HOLD_AT

from harness.backends import BackendRefused, BackendUnavailable, JobState
from harness.backends.slurm import SlurmBackend
from harness.cluster import Cluster
from harness.plan import Plan, Row
from harness.reconcile import live_jobs
from harness.stage import Stage
from harness.store import Store
from harness.submit import submit_plan

PROJECT = Path(__file__).resolve().parents[2]
PATIENCE = 240.0  # a limit for what takes seconds: a busy machine must not fail a test


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Waits until the condition holds, and returns what it said; fails naming `what`."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.2)
    return found


def command(*words: object, cwd: Path, seconds: float = 900.0) -> subprocess.CompletedProcess[str]:
    """`harness WORDS...` in a process of its own."""
    line = [sys.executable, "-m", "harness.cli", *map(str, words)]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, timeout=seconds)


def code_with_test_stages(folder: Path) -> Path:
    """A snapshot of the code to which the stage kinds of these tests have been added.

    They exist there alone: that stages run at all shows that jobs run the snapshot's code.
    """
    skipped = shutil.ignore_patterns("__pycache__")
    for name in ("harness", "methods", "evals"):
        shutil.copytree(PROJECT / name, folder / name, ignore=skipped)
    shutil.copyfile(Path(__file__).parent / "counting.py", folder / "counting.py")
    with (folder / "harness" / "stage.py").open("a") as file:
        file.write('\nKINDS.update(counting="counting:Counting", training="counting:Training")\n')
    return folder


class Lab:
    """A plan of stages with a store of its own, submitted to the real cluster."""

    def __init__(
        self,
        slurm: DevCluster,
        root: Path,
        code: Path,
        wanted: dict[str, tuple[Any, list[str]]],
        **profile: Any,
    ) -> None:
        """`wanted`: name -> (task, names of the stages that it needs), parents first."""
        self.slurm, self.code = slurm, code
        self.store = Store(root / "runs").create()
        self.stages: dict[str, Stage] = {}
        for name, (task, needs) in wanted.items():
            needed = {each: self.stages[each] for each in needs}
            self.stages[name] = Stage(task.kind, name, task, needed)
        row = Row("none", "", 0, {}, self.stages)
        about = (SimpleNamespace(name="tests"), SimpleNamespace(name="tiny"))
        stages = {stage.key: stage for stage in self.stages.values()}
        self.plan = Plan(*about, (row,), stages)  # type: ignore[arg-type]
        settings = {"partition": "gpu", "time": "30:00", "grace": 60, "cpus": 1, **profile}
        self.cluster = Cluster(
            backend="slurm", name="test", slurm_conf=str(slurm.configuration), **settings
        )
        self.backend = SlurmBackend(self.cluster)

    def run(self) -> int:
        """What `harness run` does; returns how many jobs it submitted."""
        _, count = submit_plan(
            self.store, self.plan, self.backend, self.cluster.job, {}, code=self.code
        )
        return count

    def folder(self, name: str) -> Path:
        return self.store.folder(self.stages[name])

    def live(self, name: str) -> JobState | None:
        return live_jobs(self.store, self.plan, self.backend).get(self.stages[name].key)

    def held(self, name: str) -> JobState:
        """The job of a stage, once it waits for its file `hold`."""

        def waiting() -> JobState | None:
            job = self.live(name) if HOLD_AT in self.steps(name) else None
            return job if job and job.state == "running" else None

        found: JobState = until(waiting, f"{name} waits")
        return found

    def release(self, name: str) -> None:
        """Lets a stage go on that waits for its file `hold`."""
        Path(self.stages[name].task.hold).touch()

    def done(self, name: str) -> bool:
        outcome = self.store.outcome(self.folder(name))
        return outcome is not None and outcome.done

    def all_done(self) -> bool:
        return all(self.done(name) for name in self.stages)

    def runs_out(self) -> bool:
        """Whether all is done after one more `harness run`, which a limit may refuse."""
        try:
            self.run()
        except BackendRefused:
            return False
        return self.all_done()

    def steps(self, name: str) -> list[int]:
        """The numbers of the steps in metrics.jsonl."""
        path = self.folder(name) / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line)["step"] for line in lines if line.endswith("}")]

    def starts(self, name: str) -> list[str]:
        """Who began to work on a stage, in order: `job.restart@node step`."""
        path = self.folder(name) / "starts.log"
        return path.read_text().splitlines() if path.exists() else []

    def finish(self) -> None:
        """Reconciles until all stages are done, as somebody who tries `harness run` again would.

        Nodes that Slurm has set aside are brought back, as an operator would.
        """

        def reconciled() -> bool:
            if self.all_done():
                return True
            for node in self.slurm.nodes:
                self.slurm.call("scontrol", "update", f"NodeName={node}", "State=RESUME")
            try:
                self.run()
            except BackendUnavailable:
                return False
            return False

        until(reconciled, "all stages done")

    def assert_counted_once(self) -> None:
        for name, stage in self.stages.items():
            assert self.done(name), self.log(name)
            assert self.steps(name) == list(range(1, stage.task.steps + 1)), self.log(name)

    def log(self, name: str) -> str:
        """All logs of a stage, for the message of a failed assertion."""
        found = sorted((self.folder(name) / "attempts").glob("*/*_log.out"))
        return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in found)
