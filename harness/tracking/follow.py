"""Keeping MLflow level while stages run, and making it level afterwards."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from harness.report.source import StoreSource
from harness.store import Store, read_table
from harness.tracking.mirror import Mirror, Summary
from harness.tracking.server import default_uri, is_server
from methods.errors import InputError

log = logging.getLogger(__name__)
LAST_PASS_SECONDS = 60.0


@contextmanager
def following(
    store: Store,
    study: str,
    uri: str | None = None,
    every: float = 5.0,
    keys: Collection[str] | None = None,
) -> Iterator[None]:
    """Mirrors in a thread of its own while the body runs, and once more at its end.

    Nothing that MLflow does reaches the body; only leaving it may take up to a minute longer.
    `every`: seconds between passes. `keys`: these stages alone, for a job that forwards itself.
    """
    mirror = Mirror(store, study, uri)
    stop = threading.Event()
    thread = threading.Thread(target=_follow, args=(mirror, stop, every, keys), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(LAST_PASS_SECONDS)
        if thread.is_alive():
            log.warning("MLflow is slow and stays behind (`harness sync` makes it level)")


@contextmanager
def forwarding(folder: Path, every: float = 10.0) -> Iterator[None]:
    """For a job: forwards its own stage live, if MLFLOW_TRACKING_URI names a server.

    `folder` is the stage's. A job never writes to a sqlite file: `harness run` or `sync` does.
    """
    store, key = Store(folder.parent.parent), folder.name.rpartition("-")[2]
    uri = default_uri(store.root)
    study = _study_of(store, key) if is_server(uri) else None
    if study is None:
        yield
        return
    with following(store, study, uri, every, keys=[key]):
        yield


def _study_of(store: Store, key: str) -> str | None:
    """The first study whose plan has the stage."""
    for path in sorted((store.root / "studies").glob("*.json")):
        with suppress(InputError):  # the plan of another study may be damaged
            stages = (read_table(path) or {}).get("stages")
            if isinstance(stages, dict) and key in stages:
                return path.stem
    return None


def _follow(
    mirror: Mirror, stop: threading.Event, every: float, keys: Collection[str] | None
) -> None:
    last = False
    while not last:
        last = stop.wait(every)
        try:
            mirror.once(keys)
        except InputError as error:
            log.warning("MLflow: %s", error)
            return


def sync(
    store: Store, uri: str | None = None, study: str | None = None, scale: str | None = None
) -> Summary:
    """`harness sync`: makes MLflow level for one study, or for all that the store has.

    A `scale` alone means all studies at it. The summary prints as one line; its `error` is "" where
    MLflow is level. Raises InputError for a bad address and where the store has no such study.
    """
    total = Summary()
    for name in [study] if study else _studies(store, scale):
        total += Mirror(store, name, uri, scale if study else None, True).once()
        if total.error:
            break
    return total


def _studies(store: Store, scale: str | None) -> list[str]:
    """The names of the store's plans, or of those at this scale."""
    names = sorted(path.stem for path in (store.root / "studies").glob("*.json"))
    if scale is not None:
        plans = StoreSource(store.root)
        names = [name for name in names if plans.plan(name)["study"]["scale"] == scale]
    if not names:
        wanted = f" of scale {scale!r}" if scale else ""
        raise InputError(f"{store.root} has no study{wanted} to sync; `harness run` makes one")
    return names
