"""The Slurm backend: submitit writes and submits the job scripts, squeue says what lives.

Why not submitit's own job states: it asks sacct, which many clusters lack, and it was seen to call
living jobs finished. Attempts are found by the comment of their job, since job ids come again after
a controller has lost its state.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.backends import Attempt, BackendRefused, BackendUnavailable, JobState
from harness.cluster import Cluster, minutes

# What a job inherits from the submitting shell: enough to start Python, and no secrets.
INHERITED = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "SHELL", "TZ", "USER")
RUNNING = ("RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "RESIZING")
QUEUED = (
    "PENDING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "RESV_DEL_HOLD",
    "SPECIAL_EXIT",
    "STOPPED",
    "SUSPENDED",
)
NO_ANSWER = (
    "Unable to contact",
    "Connection refused",
    "timed out",
    "configuration source",
    "Communication connection failure",
    "Zero Bytes",
    "Protocol authentication error",
    "endpoint is not connected",
)
CLIENT_SECONDS = 120.0
# A signal that comes before the worker listens must not end the job: Slurm would call it failed,
# and its dependents would be cancelled.
SHIELD = """sh -c 'trap "" TERM USR2; exec "$0" "$@"'"""


class SlurmBackend:
    """Submits each attempt as one job of the cluster's profile."""

    name = "slurm"

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._in_queue: int | None = None  # our jobs, counted by query() and submit()

    def submit(self, attempt: Attempt) -> str:
        """The job's id. Raises BackendUnavailable or BackendRefused, in Slurm's words.

        After BackendUnavailable the job may exist all the same; query() tells then.
        """
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        from harness.worker import StageJob

        limit = self.cluster.max_submitted
        if limit and self._in_queue is None:
            self.query([])
        if limit and (self._in_queue or 0) >= limit:
            raise BackendRefused(f"max_submitted = {limit} of {self.cluster.name} is reached")
        # What sbatch says when it refuses comes with the error, and need not be printed as well.
        with self._environment(), contextlib.redirect_stderr(io.StringIO()):
            try:
                job = self._executor(attempt).submit(StageJob(str(attempt.place_on_nodes)))
            except (FailedJobError, FailedSubmissionError, FileNotFoundError) as error:
                raise _failure(str(error)) from None
        self._in_queue = (self._in_queue or 0) + 1
        return str(job.job_id)

    def submit_command(
        self, comment: str, name: str, command: list[str], after: list[str], logs: Path, code: Path
    ) -> str:
        """A job of one core for `command`, in this folder, when the jobs `after` have ended.

        Returns its id. Raises BackendUnavailable or BackendRefused.
        """
        mine = ("partition", "account", "qos", "constraint", "reservation")
        asked = {
            **{each: getattr(self.cluster, each) for each in mine if getattr(self.cluster, each)},
            "job-name": name,
            "comment": comment,
            "dependency": "afterany:" + ":".join(after),
            "nodes": 1,
            "ntasks": 1,
            "mem": "4G",
            "time": 30,
            "export": ",".join(INHERITED),
            "chdir": Path.cwd(),
            "output": logs / "%j.out",
        }
        lines = [f"#SBATCH --{key}={_quoted(str(text))}" for key, text in asked.items()]
        setup = self._setup(Attempt(comment, logs, name, name, code=code))
        script = "\n".join(["#!/bin/bash", *lines, *setup, shlex.join(command), ""])
        return self._call("sbatch", "--parsable", text=script).strip().partition(";")[0]

    def query(self, attempts: Iterable[Mapping[str, object]]) -> dict[str, JobState]:
        """The state of the attempts that Slurm knows, from one call of squeue.

        A job whose launch failed is held by Slurm until somebody releases it: that is done here.
        """
        # Of stages that share a job, the job has the comment of one.
        names = {
            str(each["attempt"]): str(each.get("beside") or each["attempt"]) for each in attempts
        }
        wanted = set(names.values())
        listing = self._call("squeue", "--me", "-h", "-a", "-t", "all", "-o", "%i|%T|%r|%N|%k")
        found: dict[str, JobState] = {}
        self._in_queue = 0
        for line in listing.splitlines():
            job, state, reason, node, comment = [*line.split("|", 4), "", "", "", ""][:5]
            known = _state(state, reason)
            self._in_queue += known != "dead"
            if comment in wanted and (comment not in found or known != "dead"):
                shown = state.lower() if reason == "None" else reason
                found[comment] = JobState(known, job, shown, node)
                if known == "queued" and "launch" in reason and "held" in reason:
                    self._call("scontrol", "release", job)
        return {name: found[comment] for name, comment in names.items() if comment in found}

    def cancel(self, jobs: Iterable[str]) -> None:
        """Ends these jobs; a running stage has the cluster's KillWait to save its state."""
        wanted = list(jobs)
        if wanted:
            with contextlib.suppress(BackendRefused):  # a job that has just ended
                self._call("scancel", *wanted)

    def partitions(self) -> list[tuple[str, str]]:
        """Each partition and its nodes, as `2 nodes of 8 CPUs, gpu:4, idle`."""
        listing = self._call("sinfo", "-h", "-o", "%R|%D nodes of %c CPUs, %G, %T")
        return [(name, told) for name, _, told in (x.partition("|") for x in listing.splitlines())]

    def script(self, attempt: Attempt) -> str:
        """The exact text that submit() hands to sbatch; needs no cluster."""
        executor = self._executor(attempt)
        return executor._make_submission_file_text(executor._submitit_command_str, attempt.id)

    def test_only(self, attempt: Attempt) -> str:
        """Slurm's own opinion of when and where the attempt would start, or why not."""
        try:
            told = self._call("sbatch", "--test-only", text=self.script(attempt))
            return told.replace("sbatch: ", "").strip()
        except BackendRefused as error:
            return str(error)

    # ---- one attempt as parameters of sbatch -----------------------------------------------

    def _executor(self, attempt: Attempt) -> Any:
        for text in (attempt.name, str(attempt.place.resolve())):
            _quoted(text)
        python = shlex.quote(self.cluster.python or sys.executable)
        executor = _executor_class()(
            folder=attempt.place.resolve(),
            max_num_timeout=self.cluster.max_requeues,
            python=f"{SHIELD} {python}",
        )
        executor._throttling = 0.0  # submitit waits 0.2 s between submissions otherwise
        executor.update_parameters(**self._parameters(attempt))
        return executor

    def _parameters(self, attempt: Attempt) -> dict[str, Any]:
        """submitit's names for what the profile and the plan ask for."""
        wants = self.cluster.of(attempt.kind)
        asked: dict[str, Any] = {
            "job_name": attempt.name,
            "time": minutes(wants.time),
            "nodes": wants.nodes,
            "ntasks_per_node": wants.tasks_per_node,
            "signal_delay_s": wants.grace,
            "comment": attempt.id,
            "wckey": "",
            "stderr_to_stdout": True,
            "setup": self._setup(attempt),
            "srun_args": ["--kill-on-bad-exit=1", "--export=ALL"],
            "additional_parameters": self._additional(attempt),
        }
        for name in ("partition", "account", "qos", "constraint", "mail_type", "mail_user"):
            asked[name] = getattr(wants, name) or None
        asked["mem"] = wants.memory or None
        if wants.cpus:
            asked["cpus_per_task"] = wants.cpus
            asked["srun_args"].append(f"--cpus-per-task={wants.cpus}")  # srun forgets it in 22.05+
        if wants.gpus and wants.gpu_flag == "gpus-per-node":
            asked["gpus_per_node"] = wants.gpus
        elif wants.gpus and wants.gpu_flag == "gres":
            asked["gres"] = f"gpu:{wants.gpus}"
        if attempt.after:
            asked["dependency"] = "afterok:" + ":".join(attempt.after)
        return {key: value for key, value in asked.items() if value is not None}

    def _additional(self, attempt: Attempt) -> dict[str, Any]:
        wants = self.cluster.of(attempt.kind)
        found: dict[str, Any] = {
            "chdir": str(attempt.place.resolve()),
            "export": ",".join(INHERITED),
            "kill-on-invalid-dep": "yes",
            "requeue" if self.cluster.max_requeues else "no-requeue": True,
            **{key.replace("_", "-"): value for key, value in wants.sbatch.items()},
        }
        if wants.reservation:
            found["reservation"] = wants.reservation
        return found

    def _setup(self, attempt: Attempt) -> list[str]:
        """Lines before the stage starts: the profile's, then variables. The snapshot comes first on
        Python's path, so that a job that has waited for days runs the code that was submitted."""
        variables = dict(self.cluster.environment)
        if self.cluster.slurm_conf:
            variables["SLURM_CONF"] = self.cluster.slurm_conf
        lines = [f"export {name}={shlex.quote(text)}" for name, text in variables.items()]
        if attempt.code is not None:
            code = shlex.quote(str(attempt.code.resolve()))
            lines.append(f'export PYTHONPATH={code}"${{PYTHONPATH:+:$PYTHONPATH}}"')
        return [*self.cluster.setup, *lines]

    # ---- Slurm's commands ------------------------------------------------------------------

    @contextlib.contextmanager
    def _environment(self) -> Iterator[None]:
        """Hides the variables of a job around us, which sbatch would take for options.

        Raises BackendUnavailable where the profile's slurm.conf is missing: Slurm's own commands
        would look for it for a minute.
        """
        configuration = self.cluster.slurm_conf
        if configuration and not os.path.exists(configuration):
            hint = "; slurm/dev/up starts this cluster" if self.cluster.name == "dev" else ""
            raise BackendUnavailable(f"{configuration}: no such file{hint}")
        before = dict(os.environ)
        for name in before:
            if name.startswith(("SLURM_", "SLURMD_", "SBATCH_", "SRUN_")) and name != "SLURM_CONF":
                del os.environ[name]
        if configuration:
            os.environ["SLURM_CONF"] = configuration
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    def _call(self, *command: str, text: str | None = None) -> str:
        """Both outputs of a Slurm command. Raises BackendUnavailable or BackendRefused."""
        try:
            with self._environment():
                done = subprocess.run(
                    command,
                    input=text,
                    capture_output=True,
                    text=True,
                    timeout=CLIENT_SECONDS,
                    check=False,
                )
        except FileNotFoundError:
            raise BackendUnavailable(f"{command[0]} is not installed here") from None
        except subprocess.TimeoutExpired:
            raise BackendUnavailable(f"{command[0]} did not answer") from None
        if done.returncode != 0:
            raise _failure(done.stderr)
        return done.stdout or done.stderr


def _quoted(text: str) -> str:
    """`text` as one word of a shell. Raises BackendRefused for a line break, which ends #SBATCH."""
    if not text.isprintable():
        raise BackendRefused(f"{text!r} cannot stand in a job script")
    return shlex.quote(text)


def _executor_class() -> Any:
    from submitit import SlurmExecutor

    class WritingExecutor(SlurmExecutor):
        """Writes scripts where there is no srun too (for --dry-run)."""

        @classmethod
        def affinity(cls) -> int:
            return 1

    return WritingExecutor


def _state(state: str, reason: str) -> Any:
    if reason == "DependencyNeverSatisfied":
        return "dead"
    return "running" if state in RUNNING else "queued" if state in QUEUED else "dead"


def _failure(text: str) -> BackendUnavailable | BackendRefused:
    """Slurm's own words, without the names of its programs before each line."""
    words = []
    for line in text.splitlines():
        for prefix in ("sbatch:", "squeue:", "scancel:", "scontrol:", "error:", "slurm_load_jobs"):
            line = line.strip().removeprefix(prefix)
        if line.strip():
            words.append(line.strip())
    said = "; ".join(words) or "no reason given"
    unavailable = any(sign in text for sign in NO_ANSWER) or "No such file" in text
    return BackendUnavailable(said) if unavailable else BackendRefused(said)
