"""What a job on Slurm has to know of Slurm: who it is among its ranks, and how to leave well."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time

PATIENCE_SECONDS = 3600.0  # how long a job that wants to leave waits for a silent controller
REFUSALS = 10  # a refused requeue may be a matter of the moment, ten are not


def layout() -> tuple[int, int, int]:
    """Rank, world size and rank on the node, from srun's environment."""
    number = os.environ.get
    return (
        int(number("SLURM_PROCID", 0)),
        int(number("SLURM_NTASKS", 1)),
        int(number("SLURM_LOCALID", 0)),
    )


def restarts() -> int:
    """How often Slurm has put this job back into the queue, for whatever reason."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0))


def owner() -> str:
    """`job.restart@node`: two copies of one job differ in it. Host names would not do: the nodes of
    a one-machine cluster share one."""
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    return f"{os.environ['SLURM_JOB_ID']}.{restarts()}@{node}"


def rendezvous() -> None:
    """Sets the variables that torch.distributed reads, and leaves CUDA_VISIBLE_DEVICES alone.

    submitit's own export() would set it to the local rank, and two jobs on a node would share GPUs.
    """
    from submitit.slurm.slurm import SlurmJobEnvironment

    rank, world, local = layout()
    environment = SlurmJobEnvironment()
    # Another port for each restart: the copy before may still be dying.
    port = random.Random(f"{environment.job_id}.{restarts()}").randint(20000, 31999)
    os.environ.update(
        MASTER_ADDR=_address(environment.hostnames[0]),
        MASTER_PORT=str(port),
        RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_RANK=str(local),
        LOCAL_WORLD_SIZE=str(world // environment.num_nodes),
    )


def _address(host: str) -> str:
    """The address of the job's first node, also where node names do not resolve."""
    try:
        return str(socket.getaddrinfo(host, None)[0][4][0])
    except OSError:
        # srun is started by the batch script, and that runs on the first node.
        return os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")


def leave(why: str, limit: int, main: bool) -> None:
    """Ends a process whose stage has saved its state, back into the queue where that helps.

    After a time limit's or a preemption's signal the job is put back, at most `limit` times. Where
    Slurm has already decided (scancel, requeue) there is nothing to add. A job that just ended with
    an error while it is being preempted would count as failed, and take its dependents along.
    """
    if not main:
        time.sleep(PATIENCE_SECONDS)  # rank 0 decides, and its end ends this process
    if restarts() >= limit:
        print(f"not put back into the queue: that was done {restarts()} times (max_requeues)")
    elif _requeue(os.environ["SLURM_JOB_ID"]):
        print(f"back into the queue ({why}), time {restarts() + 1} of {limit}", flush=True)
        time.sleep(60)  # Slurm ends this process
    sys.exit(3)


def _requeue(job: str) -> bool:
    """Puts the job back into the queue; False where Slurm ends it anyway or refuses.

    A controller that does not answer is asked again.
    """
    deadline, refusals = time.monotonic() + PATIENCE_SECONDS, 0
    while time.monotonic() < deadline and refusals < REFUSALS:
        state = _ask("squeue", "-h", "-j", job, "-o", "%T")
        if state is not None and state != "RUNNING":
            return False
        if state is not None:
            if _ask("scontrol", "requeue", job) is not None:
                return True
            refusals += 1
        time.sleep(1)
    return False


def _ask(*command: str) -> str | None:
    """The answer of a Slurm command, or None where it failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"{command[0]}: {error}", flush=True)
        return None
    if done.returncode != 0:
        print(done.stderr.strip(), flush=True)
        return None
    return done.stdout.strip()
