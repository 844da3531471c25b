"""Accounting for the one-machine cluster: slurmdbd on a MariaDB of its own, with one account.

With it the cluster has associations and their limits, QOS and sacct, as large clusters do; the
harness needs none of them. Takes a second or two more to start, and 55 MB of memory.
"""

import os
import pwd
import subprocess
from pathlib import Path

from host import PATH

PACKAGES = ("slurmdbd", "mariadb-server-core")
PROGRAMS = ("slurmdbd", "mariadbd")
ACCOUNT = "dev"
# slurmdbd keeps procedures in the database, and those live in MariaDB's own tables.
SYSTEM_TABLES = Path("/usr/share/mysql/mysql_system_tables.sql")


def user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def controller_lines(port: int, munge: str) -> str:
    """Lines of slurm.conf. The munge socket of AuthInfo is not used for slurmdbd."""
    return f"""AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStorageTRES=gres/gpu
AccountingStoragePass={munge}
AccountingStorageEnforce=limits"""


def write(folder: Path, munge: str, port: int, database_port: int) -> None:
    """Write slurmdbd.conf, which only its owner may read."""
    path = folder / "etc" / "slurmdbd.conf"
    path.touch(mode=0o600)
    path.write_text(f"""DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
CommunicationParameters=NoInAddrAny
SlurmUser={user()}
AuthType=auth/munge
AuthInfo=socket={munge}
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
CommitDelay=0
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.pid
""")


def create_database(folder: Path, run: str) -> None:
    """Make MariaDB's own tables; raises subprocess.CalledProcessError."""
    (folder / "database" / "mysql").mkdir(parents=True)
    tables = f"use mysql;\n{SYSTEM_TABLES.read_text()}"
    command = [*_database(folder, run), "--bootstrap"]
    subprocess.run(
        command, input=tables, text=True, env={"PATH": PATH}, capture_output=True, check=True
    )


def database_command(folder: Path, run: str, port: int) -> list[str]:
    """The database on a port of this machine."""
    where = [f"--socket={run}/mysql.sock", f"--port={port}", "--bind-address=127.0.0.1"]
    open_to_all = ["--skip-grant-tables", "--skip-networking=0", "--skip-name-resolve"]
    return [*_database(folder, run), *where, *open_to_all]


def _database(folder: Path, run: str) -> list[str]:
    """mariadbd, small and careless about crashes: `down` removes its files anyway."""
    return [
        "mariadbd",
        "--no-defaults",
        f"--datadir={folder}/database",
        f"--pid-file={run}/mariadbd.pid",
        f"--log-error={folder}/log/mariadbd.log",
        f"--tmpdir={run}",
        f"--user={user()}",
        "--skip-log-bin",
        "--performance-schema=OFF",
        "--innodb-buffer-pool-size=16M",
        "--innodb-log-file-size=8M",
        "--innodb-flush-log-at-trx-commit=0",
        "--innodb-doublewrite=0",
        "--innodb-use-native-aio=0",
        "--innodb-flush-method=nosync",
        "--innodb-lock-wait-timeout=900",
    ]


def associations() -> list[list[str]]:
    """What has to be said to sacctmgr before a job is accepted."""
    return [
        ["sacctmgr", "-i", "add", "account", ACCOUNT, "Description=dev", "Organization=dev"],
        ["sacctmgr", "-i", "add", "user", user(), f"Account={ACCOUNT}", "AdminLevel=Administrator"],
    ]
