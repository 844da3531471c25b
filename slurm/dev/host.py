"""What the cluster needs from this machine: packages, addresses, ports, facts of processes."""

import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

PACKAGES = ("slurm-wlm", "munge")
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ClusterError(Exception):
    """The cluster cannot be started; the message says why in words for the user."""


def check_installed(
    programs: tuple[str, ...] = PROGRAMS, packages: tuple[str, ...] = PACKAGES
) -> None:
    """Install the Debian packages where the user is root; raises ClusterError with the command."""
    missing = [name for name in programs if shutil.which(name, path=PATH) is None]
    if not missing:
        return
    command = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    words = f"{', '.join(missing)} missing: on Debian or Ubuntu run sudo {' '.join(command)}"
    hint = f"Slurm is not installed ({words})"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise ClusterError(hint)
    print("installing", *packages, file=sys.stderr)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for step in (["apt-get", "update"], command):
        done = subprocess.run(step, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"{hint}\n{done.stderr.strip()[-500:]}")


def check_loopback() -> None:
    """Slurm resolves names with AI_ADDRCONFIG, which fails where 127.0.0.1 is the only address.

    Such is a container without a network. Root adds 127.0.0.2 to the loopback interface then, where
    it does no harm and stays; others get a ClusterError.
    """
    try:
        socket.getaddrinfo("127.0.0.1", 1, socket.AF_INET, flags=socket.AI_ADDRCONFIG)
    except socket.gaierror:
        command = ["ip", "addr", "add", "127.0.0.2/8", "dev", "lo"]
        if os.geteuid() != 0 or shutil.which("ip") is None:
            raise ClusterError(
                f"no network address but 127.0.0.1: run sudo {' '.join(command)}"
            ) from None
        subprocess.run(command, check=True)


def listen() -> str:
    """Listen on 127.0.0.1 alone where the host's name leads there, else on every interface."""
    try:
        local = socket.gethostbyname(socket.gethostname()) == "127.0.0.1"
    except OSError:
        local = False
    return "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny" if local else ""


def free_ports(count: int) -> list[int]:
    """`count` ports that nobody uses now, below the range that outgoing connections use."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def started(pid: int) -> str:
    """The start time of a process in clock ticks since boot."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]


def end_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent dies (PR_SET_PDEATHSIG is 1)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
