"""A real Slurm cluster (controller, several nodes with fake GPUs, munge) on this machine.

For tests and for trying the harness on a laptop: about 12 MB of memory, a second to start.
Everything lives in one folder, and only processes that this module started are ever signalled.
Standard library only; needs Debian's packages slurm-wlm and munge.
"""

import contextlib
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import string
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accounting
from host import (
    PATH,
    ClusterError,
    alive,
    check_installed,
    check_loopback,
    end_with_parent,
    free_ports,
    listen,
    started,
)

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parent.parent / ".slurm-dev"
# Slurm wants one character device per GPU and never opens it, so that any device will do.
DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "console")


class Cluster:
    """One controller and `nodes` nodes (dev1, dev2, ...) of `gpus` fake GPUs in `folder`.

    `tied`: the daemons end with this process, however it ends (for tests). `accounting`: with
    slurmdbd and a database, see accounting.py.
    """

    def __init__(
        self,
        folder: Path = FOLDER,
        nodes: int = 2,
        gpus: int = 4,
        tied: bool = False,
        accounting: bool = False,
    ):
        self.accounting = accounting
        self.folder = Path(folder).resolve()
        self.nodes = [f"dev{number + 1}" for number in range(nodes)]
        self.gpus = gpus
        self.tied = tied
        self.configuration = self.folder / "etc" / "slurm.conf"
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """What sbatch, squeue and the others need to find this cluster."""
        return {"SLURM_CONF": str(self.configuration)}

    # ---- start and stop ------------------------------------------------------------------

    def up(self, timeout: float = 60.0) -> None:
        """Start everything and wait until all nodes are idle; ports are tried three times.

        Raises ClusterError when Slurm is missing or does not come up; nothing is left then.
        """
        check_installed()
        if self.accounting:
            check_installed(accounting.PROGRAMS, accounting.PACKAGES)
        check_loopback()
        for last in (False, False, True):
            try:
                self._write()
                self._start(time.monotonic() + timeout)
                return
            except (ClusterError, TimeoutError) as error:
                words = self._last_words()
                self.down()
                if last:
                    raise ClusterError(f"the cluster did not come up: {error}\n{words}") from error
            except BaseException:
                self.down()
                raise

    def _start(self, deadline: float) -> None:
        self.start_daemon("munged")
        socket_file = Path(self._state()["socket"])
        self._wait(socket_file.is_socket, deadline)
        if self.accounting:
            accounting.create_database(self.folder, self._state()["run"])
        for daemon in self._daemons()[1 : -len(self.nodes)]:
            self.start_daemon(daemon)
            # A slurmd that finds no controller sleeps a second before it tries again.
            self._wait(lambda daemon=daemon: self._listens(daemon), deadline)
        for command in accounting.associations() if self.accounting else []:
            self._wait(lambda command=command: self.call(*command).returncode == 0, deadline)
        for node in self.nodes:
            self.start_daemon(f"slurmd-{node}")
        self._wait(self.idle, deadline)

    def down(self) -> None:
        """Stop daemons and jobs, strays included, and remove the folder."""
        if not self.folder.exists():
            return
        # The controller first: it must not requeue what is killed next.
        self.stop_daemon("slurmctld")
        self._kill_strays()
        for daemon in sorted(path.name for path in (self.folder / "pid").glob("slurmd-*")):
            self.stop_daemon(daemon)
        for daemon in ("slurmdbd", "mariadbd", "munged"):
            self.stop_daemon(daemon)
        self._kill_strays()
        shutil.rmtree(self._state().get("run", self.folder / "run"), ignore_errors=True)
        shutil.rmtree(self.folder)

    def is_up(self) -> bool:
        return self._pid("slurmctld") is not None

    def idle(self) -> bool:
        """True when the controller answers and every node is idle.

        Raises ClusterError when a daemon has died.
        """
        for daemon in self._daemons():
            if self._pid(daemon) is None:
                raise ClusterError(f"{daemon} died")
        found = self.call("sinfo", "-h", "-N", "-p", "gpu", "-o", "%N %T").stdout.split("\n")
        return {f"{node} idle" for node in self.nodes} <= set(found)

    def _daemons(self) -> list[str]:
        """In the order in which they are started."""
        database = ["mariadbd", "slurmdbd"] if self.accounting else []
        return ["munged", *database, "slurmctld", *(f"slurmd-{node}" for node in self.nodes)]

    def call(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a Slurm client against this cluster; the caller looks at the return code."""
        environment = {**os.environ, **self.environment}
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    # ---- single daemons and faults ---------------------------------------------------------

    def start_daemon(self, name: str) -> None:
        """Start munged, slurmctld, slurmd-<node>, mariadbd or slurmdbd unless it runs."""
        if self._pid(name) is not None:
            return
        with open(self.folder / "log" / f"{name}.out", "ab") as output:
            child = subprocess.Popen(
                self._command(name),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                start_new_session=True,
                env=self._daemon_environment(name),
                preexec_fn=end_with_parent if self.tied else None,
            )
        self._children[name] = child
        (self.folder / "pid" / name).write_text(f"{child.pid} {started(child.pid)}")

    def _command(self, name: str) -> list[str]:
        if name == "munged":
            run = self._state()["run"]
            options = {
                "socket": "munge.sock",
                "pid-file": "pid",
                "log-file": "log",
                "seed-file": "seed",
            }
            files = [f"--{option}={run}/{file}" for option, file in options.items()]
            key = f"--key-file={self.folder}/etc/munge.key"
            return ["munged", "--foreground", "--force", "--num-threads=2", key, *files]
        if name == "mariadbd":
            state = self._state()
            return accounting.database_command(self.folder, state["run"], state["ports"][name])
        if name == "slurmdbd":
            return ["slurmdbd", "-D"]
        if name == "slurmctld":
            return ["slurmctld", "-D", "-f", str(self.configuration)]
        return ["slurmd", "-D", "-N", name.removeprefix("slurmd-"), "-f", str(self.configuration)]

    def _daemon_environment(self, name: str) -> dict[str, str]:
        """Small on purpose: slurmd hands part of it to the jobs."""
        kept = {key: os.environ[key] for key in ("LANG", "TZ", "HOME") if key in os.environ}
        conf = {"SLURM_CONF": f"{self.folder}/etc/slurmdbd.conf"} if name == "slurmdbd" else {}
        return {**kept, **self.environment, **conf, "PATH": PATH, "SLURM_DEV_DAEMON": name}

    def stop_daemon(self, name: str, number: int = signal.SIGTERM, timeout: float = 20.0) -> None:
        """Signal a daemon and wait for its end; SIGKILL when it takes longer than `timeout`."""
        deadline, ask = time.monotonic() + timeout, number
        while (pid := self._pid(name)) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, ask)
            # Signal 0 only asks whether the process is there.
            ask = 0 if time.monotonic() < deadline else signal.SIGKILL
            time.sleep(0.02)
        child = self._children.pop(name, None)
        if child is not None:
            child.wait()
        (self.folder / "pid" / name).unlink(missing_ok=True)

    def crash_node(self, node: str) -> None:
        """What a power cut does: slurmd, its slurmstepds and all processes of its jobs, SIGKILL."""
        self.stop_daemon(f"slurmd-{node}", signal.SIGKILL)
        self._kill_strays(node)

    def _kill_strays(self, node: str | None = None) -> None:
        """SIGKILL the job processes of this cluster (of one node) until none is left."""
        deadline = time.monotonic() + 10
        while (left := self._strays(node)) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def _strays(self, node: str | None) -> list[int]:
        """Processes that carry this cluster's SLURM_CONF and belong to a job."""
        ours = f"SLURM_CONF={self.configuration}"
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            # Clients such as squeue carry SLURM_CONF too: a job id or slurmstepd's name decides.
            step = b"slurmstepd" in command
            if ours in words and (step or any(word.startswith("SLURM_JOB_ID=") for word in words)):
                marks = (f"SLURM_DEV_DAEMON=slurmd-{node}", f"SLURMD_NODENAME={node}")
                if node is None or any(mark in words for mark in marks):
                    found.append(int(folder.name))
        return [pid for pid in found if pid != os.getpid() and alive(pid)]

    # ---- files -----------------------------------------------------------------------------

    def _write(self) -> None:
        """Write slurm.conf, gres.conf and the munge key for newly chosen ports."""
        for name in ("etc", "log", "pid", "run", "state", "spool"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        # The path of a Unix socket may have 107 characters, and folders of tests are long.
        run = tempfile.mkdtemp(prefix="slurm-dev-")
        ports = dict(zip(self._daemons()[1:], free_ports(len(self._daemons()) - 1), strict=True))
        munge = f"{run}/munge.sock"
        state = {"run": run, "socket": munge, "ports": ports}
        (self.folder / "state.json").write_text(json.dumps(state))
        resources = f"CPUs=8 RealMemory=8000 Gres=gpu:{self.gpus} State=UNKNOWN"
        nodes = [
            f"NodeName={node} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} {resources}"
            for node in self.nodes
            for port in [ports[f"slurmd-{node}"]]
        ]
        lines = "AccountingStorageType=accounting_storage/none"
        if self.accounting:
            lines = accounting.controller_lines(ports["slurmdbd"], munge)
            accounting.write(self.folder, munge, ports["slurmdbd"], ports["mariadbd"])
        text = (HERE / "slurm.conf.template").read_text()
        values = {
            "controller_port": ports["slurmctld"],
            "user": pwd.getpwuid(os.getuid()).pw_name,
            "socket": munge,
            "folder": self.folder,
            "accounting": lines,
            "listen": listen(),
            "nodes": "\n".join(nodes),
        }
        self.configuration.write_text(string.Template(text).substitute(values))
        gpus = [
            f"NodeName={','.join(self.nodes)} Name=gpu File=/dev/{device}"
            for device in [name for name in DEVICES if Path("/dev", name).exists()][: self.gpus]
        ]
        (self.folder / "etc" / "gres.conf").write_text("\n".join(["AutoDetect=off", *gpus, ""]))
        (self.folder / "etc" / "plugstack.conf").write_text("")
        key = self.folder / "etc" / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))

    def _state(self) -> dict[str, Any]:
        path = self.folder / "state.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def _pid(self, name: str) -> int | None:
        """The process id of a running daemon; the start time guards against ids used again."""
        child = self._children.get(name)
        if child is not None and child.poll() is not None:
            return None
        try:
            pid, since = (self.folder / "pid" / name).read_text().split()
            return int(pid) if alive(int(pid)) and started(int(pid)) == since else None
        except (OSError, ValueError):
            return None

    def _listens(self, daemon: str) -> bool:
        if self._pid(daemon) is None:
            raise ClusterError(f"{daemon} died")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._state()["ports"][daemon])) == 0

    def _wait(self, condition: Callable[[], bool], deadline: float) -> None:
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError("it was still not ready at the end of the waiting time")
            time.sleep(0.05)

    def _last_words(self) -> str:
        """The error lines at the end of each log."""
        words = []
        for log in sorted((self.folder / "log").glob("*")):
            lines = log.read_text(errors="replace").splitlines()[-40:]
            bad = [line for line in lines if "error" in line or "fatal" in line][-5:]
            words += [f"{log.name}: {line}" for line in bad]
        return "\n".join(words)
