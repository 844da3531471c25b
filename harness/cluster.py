"""A cluster profile: where stages run and with what; none of it can change a number."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from harness.bench.projection import GPUS
from harness.stage import KINDS
from harness.study import read_toml
from methods.errors import InputError
from methods.values import did_you_mean, from_plain

PROFILES = Path(__file__).resolve().parent.parent / "slurm"

# sbatch's own names -> the fields that they override on the command line.
FLAGS = {
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "reservation": "reservation",
    "nodes": "nodes",
    "gpus-per-node": "gpus",
    "ntasks-per-node": "tasks",
    "cpus-per-task": "cpus",
    "mem": "memory",
    "time": "time",
    "mail-type": "mail_type",
    "mail-user": "mail_user",
}
# What the backend writes itself: another value would break chaining, requeueing or the logs.
RESERVED = {
    "array": "each stage is a job of its own",
    "chdir": "the code must come from the snapshot",
    "comment": "it holds the attempt's id",
    "dependency": "stages are chained by the plan",
    "error": "logs belong into the stage's folder",
    "gres": "use gpus and gpu_flag",
    "job-name": "it is the stage's name",
    "kill-on-invalid-dep": "stages are chained by the plan",
    "no-requeue": "use max_requeues = 0",
    "open-mode": "a requeued job appends to its log",
    "output": "logs belong into the stage's folder",
    "requeue": "use max_requeues",
    "signal": "use grace",
    "wrap": "the job is the stage",
}


@dataclass(frozen=True)
class Resources:
    """What one job gets. A field left out is left out of the sbatch file: Slurm's default holds.

    nodes, gpus (per node), tasks (per node; 0: one per GPU, or one), cpus (per task),
    memory (per node, as in sbatch: "64G"), time ("24:00:00", "2-00:00:00", or minutes).
    gpu_flag: how this cluster wants to be asked for GPUs. gpu: which they are ("A100", "H100"), for
    the estimate of a dry run. grace: seconds before the time limit at which the stage is told to
    save. device: of the computation; by default cuda where gpus > 0. device_batch: most images at
    a time on one device. loader_workers: processes that load per task.
    threads: CPU threads per task where the stage itself does not say (0: the library's default).
    compile: the blocks that are trained by torch.compile; where that fails, without it and with an
    alarm. activation_checkpointing: keep of each such block its input alone and compute the rest a
    second time in the backward pass: less memory, a third more arithmetic, the same numbers.
    shard: parameters, gradients and the optimiser's state over the tasks (FSDP), for ViT-L and
    larger; networks without blocks, and CLIP, stay whole.
    sbatch: any other option of sbatch, by its own long name; true for one without a value.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    reservation: str = ""
    nodes: int = 1
    gpus: int = 0
    gpu_flag: Literal["gpus-per-node", "gres", "none"] = "gpus-per-node"
    gpu: str = ""
    tasks: int = 0
    cpus: int = 0
    memory: str = ""
    time: str = "24:00:00"
    grace: int = 180
    mail_type: str = ""
    mail_user: str = ""
    device: Literal["cpu", "cuda"] | None = None
    device_batch: int | None = None
    loader_workers: int = 0
    threads: int = 0
    compile: bool = False
    activation_checkpointing: bool = False
    shard: bool = False
    sbatch: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for each in fields(self):
            _check_text(each.name, getattr(self, each.name))
        for name in ("gpus", "tasks", "cpus", "loader_workers", "threads"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if self.gpu and self.gpu not in GPUS:
            raise ValueError(f"gpu: no figures of {self.gpu!r}{did_you_mean(self.gpu, GPUS)}")
        if self.nodes < 1:
            raise ValueError(f"nodes must be at least 1, not {self.nodes}")
        # The signal may come a minute early and must find the stage at work (slurm's man page).
        if not 1 <= self.grace <= 60 * minutes(self.time) - 60:
            raise ValueError(f"grace must lie between 1 s and the time limit - 60 s: {self.grace}")
        for key, value in self.sbatch.items():
            name = key.replace("_", "-")  # sbatch takes the beginning of a name for it, too
            if taken := [each for each in RESERVED if name and each.startswith(name)]:
                raise ValueError(f"sbatch.{key} is taken: {RESERVED[taken[0]]}")
            if own := {**FLAGS, "ntasks": "nodes and tasks"}.get(name):
                raise ValueError(f"sbatch.{key} is taken: use {own}")
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", key):
                raise ValueError(f"sbatch.{key!r} is not the name of an option")
            if not isinstance(value, (str, int)):
                raise ValueError(f"sbatch.{key} must be a string, a number or true")

    @property
    def tasks_per_node(self) -> int:
        return self.tasks or max(1, self.gpus)

    @property
    def world(self) -> int:
        """Processes of the job."""
        return self.nodes * self.tasks_per_node

    @property
    def runs_on(self) -> str:
        """ "cuda" or "cpu"."""
        return self.device or ("cuda" if self.gpus else "cpu")


@dataclass(frozen=True)
class Cluster(Resources):
    """One TOML in slurm/. The fields of Resources hold for every stage.

    resources: changes of them per stage kind. jobs: stages at once (local backend).
    slurm_conf: the slurm.conf to use where it is not the system's, relative to the profile.
    setup: lines of the job script before the stage starts (modules, conda, venv). python: the
    interpreter on the nodes, by default the one that submits. environment: variables of the jobs,
    which inherit only a short list from the submitting shell. data: where data sets and released
    weights are kept, where --data does not say (relative to the current folder).
    checkpoint_seconds: time between checkpoints. max_requeues: how often a job may go back to the
    queue. max_submitted: most jobs in the queue at once (0: no limit). heal: how often in a row a
    small job, when all others have ended, may submit what is missing then (0: never).
    """

    backend: Literal["local", "slurm"] = "local"
    name: str = ""
    jobs: int = 1
    slurm_conf: str = ""
    setup: tuple[str, ...] = ()
    python: str = ""
    data: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    checkpoint_seconds: float = 600.0
    max_requeues: int = 50
    max_submitted: int = 0
    heal: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.jobs < 1:
            raise ValueError(f"jobs must be at least 1, not {self.jobs}")
        for name in ("max_requeues", "max_submitted", "heal"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if self.checkpoint_seconds <= 0:
            raise ValueError(f"checkpoint_seconds must be above 0: {self.checkpoint_seconds}")
        for name in self.environment:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"environment: {name!r} is not the name of a variable")
        for name in ("data", "slurm_conf"):
            try:
                Path(getattr(self, name)).expanduser()
            except RuntimeError as error:  # ~nobody
                raise ValueError(f"{name}: {error}") from None

    @property
    def data_root(self) -> Path:
        """Where data sets are kept on this cluster."""
        return Path(self.data or "data").expanduser()

    def of(self, kind: str) -> Resources:
        """The resources of a stage of this kind. Raises InputError naming the profile's field."""
        mine = {each.name: getattr(self, each.name) for each in fields(Resources)}
        changes = dict(self.resources.get(kind, {}))
        if isinstance(changes.get("sbatch"), Mapping):
            changes["sbatch"] = {**self.sbatch, **changes["sbatch"]}
        where = f"{self.name}: resources.{kind}" if changes else self.name
        return from_plain(Resources, {**mine, **changes}, where)

    def job(self, kind: str = "") -> dict[str, Any]:
        """What job.json tells the worker about where and how a stage of this kind runs."""
        found = self.of(kind)
        return {
            "backend": self.backend,
            "cluster": self.name,
            "device": found.runs_on,
            "device_batch": found.device_batch,
            "loader_workers": found.loader_workers,
            "threads": found.threads,
            "compile": found.compile,
            "activation_checkpointing": found.activation_checkpointing,
            "shard": found.shard,
            "checkpoint_seconds": self.checkpoint_seconds,
            "max_requeues": self.max_requeues,
        }


def _check_text(name: str, value: Any) -> None:
    """Raise ValueError where a text has a character that would end its line in a job script.

    Lines of `setup` are shell as they are.
    """
    if isinstance(value, Mapping):
        for key, each in value.items():
            _check_text(f"{name}.{key}", each)
    elif isinstance(value, str) and not value.isprintable():
        raise ValueError(f"{name} must be one line of printable characters, not {value!r}")


def profile_path(word: str) -> Path:
    """The file of the profile that `word` names: a path, or the name of one in slurm/."""
    return Path(word) if word.endswith(".toml") or "/" in word else PROFILES / f"{word}.toml"


def load_cluster(word: str) -> Cluster:
    """The profile slurm/<word>.toml, or the one at the path `word`.

    Raises InputError where there is none or a field is wrong, naming file and field.
    """
    path = profile_path(word)
    if not path.is_file():
        known = [each.stem for each in PROFILES.glob("*.toml")]
        raise InputError(f"--cluster {word}: no such profile{did_you_mean(word, known)}")
    return _from_plain({"name": path.stem, **read_toml(path)}, path)


def _from_plain(plain: dict[str, Any], path: Path) -> Cluster:
    cluster = from_plain(Cluster, plain, str(path))
    for kind, changes in cluster.resources.items():
        if kind not in KINDS:
            hint = did_you_mean(kind, KINDS)
            raise InputError(f"{path}: resources.{kind}: no such stage kind{hint}")
        for name in changes:
            if name not in {each.name for each in fields(Resources)}:
                hint = did_you_mean(name, [each.name for each in fields(Resources)])
                raise InputError(f"{path}: resources.{kind}.{name}: unknown field{hint}")
        cluster.of(kind)
    if cluster.slurm_conf:
        configuration = (path.parent / Path(cluster.slurm_conf).expanduser()).resolve()
        return from_plain(Cluster, {**_shallow(cluster), "slurm_conf": str(configuration)}, "")
    return cluster


def _shallow(cluster: Cluster) -> dict[str, Any]:
    return {each.name: getattr(cluster, each.name) for each in fields(cluster)}


def with_flags(cluster: Cluster, flags: Mapping[str, str], sbatch: Mapping[str, str]) -> Cluster:
    """The profile with command-line flags (sbatch's names, see FLAGS) over every stage kind.

    `sbatch`: any other option of sbatch, as in the profile ("" for one without a value). Raises
    InputError naming the flag.
    """
    where = " ".join([f"--{flag}" for flag in flags] + [f"--sbatch {key}" for key in sbatch])
    if where and cluster.backend != "slurm":
        raise InputError(f"{where}: {cluster.name} is no profile of a Slurm cluster")
    changes: dict[str, Any] = {}
    for flag, value in flags.items():
        name = FLAGS[flag]
        number = isinstance(getattr(cluster, name), int)
        if number and not (value.isdecimal() and len(value) < 10):
            raise InputError(f"--{flag} {value}: expected a whole number")
        changes[name] = int(value) if number else value
    if sbatch:
        other = {key: value or True for key, value in sbatch.items()}
        changes["sbatch"] = {**cluster.sbatch, **other}
    kept = {
        kind: {key: value for key, value in mine.items() if key == "sbatch" or key not in changes}
        for kind, mine in cluster.resources.items()
    }
    return from_plain(Cluster, {**_shallow(cluster), "resources": kept, **changes}, where)


def minutes(text: str) -> int:
    """Minutes of a time limit in one of sbatch's forms, or 24h, 90m, 2d; rounded up.

    M, M:S, H:M:S, D-H, D-H:M, D-H:M:S. Raises ValueError.
    """
    word = re.fullmatch(r"(\d+)([mhd])", text)
    if word:
        return int(word[1]) * {"m": 1, "h": 60, "d": 1440}[word[2]]
    days, dash, clock = text.rpartition("-")
    parts = clock.split(":")
    if (
        not all(part.isdecimal() for part in parts)
        or len(parts) > 3
        or (dash and not days.isdecimal())
    ):
        raise ValueError(f"time {text!r} is not a time limit (24:00:00, 2-00:00:00, 24h, 90)")
    numbers = [int(part) for part in parts]
    if dash:
        hours, minute, second = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, minute, second = numbers
    else:
        hours, (minute, second) = 0, (*numbers, 0)[:2]
    seconds = ((int(days or 0) * 24 + hours) * 60 + minute) * 60 + second
    return -(-seconds // 60)
