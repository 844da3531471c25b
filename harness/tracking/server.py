"""Where MLflow keeps its runs: the store's own sqlite file or a server; opening and showing it."""

from __future__ import annotations

import functools
import logging
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from methods.errors import InputError

SQLITE = "sqlite:///"
# A server that is away is asked again by the next pass, so a call gives up early: with MLflow's
# own defaults (7 retries of 120 s) one call blocks for a quarter of an hour.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
}
# A connection that is kept goes on with a sqlite file that has been deleted, and tells nobody.
CONNECTIONS = {"MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool"}
LOCK_SECONDS = 600.0
SECRET = re.compile(r"PASSWORD|TOKEN(?!IZERS)|SECRET|API_KEY|ACCESS_KEY")
VIEW = "results"
# MLflow opens its pages for language models unless it is told; the columns are the experiment's.
PAGE = f"workflowType=machine_learning&viewStateShareKey={VIEW}"


def default_uri(root: Path) -> str:
    """The server that MLFLOW_TRACKING_URI names, where it names one, else the store's own file."""
    named = os.environ.get("MLFLOW_TRACKING_URI", "")
    return named if named.startswith(("http://", "https://")) else own_uri(root)


def own_uri(root: Path) -> str:
    """The address of the store's own sqlite file, runs/mlflow.db."""
    return f"{SQLITE}{root.resolve() / 'mlflow.db'}"


def check_uri(uri: str) -> str:
    """`uri`, if it is one that is supported; raises InputError otherwise."""
    if uri.startswith(("http://", "https://")) or (uri.startswith(SQLITE) and uri != SQLITE):
        return uri
    hint = "expected http://..., https://... or sqlite:///FILE"
    raise InputError(f"MLflow address {without_secrets(uri)}: {hint}")


def is_server(uri: str) -> bool:
    """Whether `uri` is a server's: only then may jobs on nodes write to it themselves."""
    return not uri.startswith(SQLITE)


def without_secrets(text: str) -> str:
    """`text` with user:password@ of addresses and values with a secret's name blotted out, and
    wherever they stand the values that variables of the environment have under such names."""
    for secret in _secrets():
        text = text.replace(secret, "***")
    # Capitals only, as in environments: "token" is a word of this field (cls_token=...).
    name = r"\b([A-Z0-9_]*(?:PASSWORD|TOKEN|SECRET|API_KEY|ACCESS_KEY)[A-Z0-9_]*|password)"
    # A password may hold an @ or a slash.
    text = re.sub(r"://(?:[^/\s@]*:\S*|[^/\s@]+)@", "://***@", text)
    text = re.sub(
        r"(?i)([?&][^=\s&]*(?:token|secret|password|key)[^=\s&]*=)[^\s&#]+", r"\1***", text
    )
    return re.sub(name + r"(\s*[=:]\s*)([^\s,;&'\"\\]+)", r"\1\2***", text)


@functools.cache
def _secrets() -> list[str]:
    """The longest first: one may be part of another. Short ones are words of the language."""
    address = os.environ.get("MLFLOW_TRACKING_URI", "").partition("://")[2].rpartition("@")[0]
    named = [value for name, value in os.environ.items() if SECRET.search(name)]
    found = {each for each in (address, *named) if len(each) >= 8}
    return sorted(found, key=len, reverse=True)


@contextmanager
def writing(root: Path, uri: str) -> Iterator[None]:
    """Held while writing to MLflow, so that a store has one writer at a time.

    Two processes that touch a fresh sqlite file at once destroy it, and two that write to a server
    create runs twice. Where the file system cannot lock, a server is written to all the same
    (a later pass removes twins) and sqlite is not. Raises OSError (Timeout) after ten minutes.
    """
    from filelock import FileLock, SoftFileLock, Timeout

    lock = FileLock(root / "mlflow.lock", timeout=LOCK_SECONDS, thread_local=False)
    held = False
    try:
        lock.acquire()
        held = not isinstance(lock, SoftFileLock)
    except (Timeout, OSError, NotImplementedError):
        if not is_server(uri):
            raise
    try:
        yield
    finally:
        if held:
            lock.release()


def connect(uri: str) -> Any:
    """An MlflowClient for `uri`; creates the sqlite file, for which the caller holds `writing`."""
    check_uri(uri)
    prepare_environment()
    from mlflow.tracking import MlflowClient

    # Only now: importing mlflow sets the levels of its own loggers. An error of the database is
    # raised too, and told in a line.
    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    if not is_server(uri):
        _make_tables(uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _make_tables(uri: str) -> None:
    """An MlflowClient makes them once in a process, and the file may have been lost since.

    Raises InputError for a damaged file.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy.exc import DatabaseError

    path = sqlite_file(uri).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    artifacts = (path.parent / "mlartifacts").as_uri()
    if not path.exists() or not path.stat().st_size:
        # Aside: MLflow cannot go on with a file whose making a kill or a full disk has ended.
        aside = path.with_name(f".{path.name}.new")
        for each in (aside, Path(f"{aside}-journal")):
            each.unlink(missing_ok=True)
        aside.touch()  # sqlite would let nobody else of a group write
        SqlAlchemyStore(f"{SQLITE}{aside}", artifacts).engine.dispose()
        aside.replace(path)
    try:
        SqlAlchemyStore(uri, artifacts)
    except DatabaseError as error:
        if type(error) is not DatabaseError:  # locked, or the disk is full
            raise
        hint = "remove it, and `harness sync` writes it anew"
        raise InputError(f"{path}: no database of MLflow's ({error.orig}); {hint}") from None


def sqlite_file(uri: str) -> Path:
    """The file that a sqlite address names."""
    return Path(uri.removeprefix(SQLITE))


def identity(uri: str) -> tuple[int, int] | None:
    """Tells a sqlite file from another of its name; None where there is none, and of a server."""
    try:
        found = sqlite_file(uri).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def prepare_environment() -> None:
    """No telemetry, no chatter, short time-outs; what the user has set stays."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_DISABLE_AGENT_HINT", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    for name, value in (PATIENCE | CONNECTIONS).items():
        os.environ.setdefault(name, value)


def artifact_location(root: Path, uri: str, experiment: str) -> str | None:
    """Where an experiment's artifacts go: beside the sqlite file; None lets a server decide.

    Left to itself MLflow would put them into the working directory.
    """
    if is_server(uri):
        return None
    safe = re.sub(r"[^\w.-]", "_", experiment)
    return (root.resolve() / "mlartifacts" / safe).as_uri()


def serve(store: Any, host: str = "127.0.0.1", port: int = 5000) -> NoReturn:
    """`harness ui`: becomes the MLflow server of this store's sqlite file, on loopback.

    The file is made first, under the lock, because the server's own workers would race for it.
    """
    uri = own_uri(store.root)
    with writing(store.root, uri):
        experiments = connect(uri).search_experiments(max_results=100)
    print(f"MLflow shows {store.root} at http://{host}:{port} (stop with Ctrl-C)", flush=True)
    for each in experiments:
        if each.tags.get("harness") == "yes":
            page = f"http://{host}:{port}/#/experiments/{each.experiment_id}/runs?{PAGE}"
            print(f"  {each.name}: {page}", flush=True)
    command = serve_command(store.root, host, port)
    # Its queues for background jobs are processes that only cost here.
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONUNBUFFERED": "1"}
    os.execvpe(command[0], command, {**os.environ, **quiet})


def check_port(host: str, port: int) -> None:
    """Raises InputError where nothing can listen there, as MLflow would in a traceback."""
    try:
        family, *_, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as found:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((address[0], port))
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(f"--host {host} --port {port}: {why}; choose another --port") from None


def serve_command(root: Path, host: str, port: int) -> list[str]:
    """The command that `serve` becomes."""
    artifacts = (root.resolve() / "mlartifacts").as_uri()
    return [
        *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", own_uri(root)),
        *("--artifacts-destination", artifacts, "--host", host, "--port", str(port)),
        *("--workers", "1"),
    ]
