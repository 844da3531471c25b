"""Where a store's own sqlite file says that its artifacts are, put right after a move or a copy."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from harness.tracking.server import own_uri, sqlite_file

ADDRESSES = (("experiments", "artifact_location"), ("runs", "artifact_uri"))


def relocate(root: Path, uri: str) -> int:
    """Makes the addresses those of `root`'s mlartifacts/; how many were others. Under `writing`.

    MLflow writes them absolute: those of a store that was moved lead nowhere, and those of a copy
    into the store that it was copied from. A database that is not the store's own stays as it is.
    """
    path = sqlite_file(own_uri(root))
    if not path.is_file() or sqlite_file(uri).resolve() != path.resolve():
        return 0
    here, changed = (path.parent / "mlartifacts").as_uri(), 0
    with closing(sqlite3.connect(path, timeout=60)) as database, database:
        found = database.execute("select artifact_location from experiments")
        places = {str(location).rpartition("/")[0] for (location,) in found}
        for place in places - {here}:
            if place.startswith("file:") and place.endswith("/mlartifacts"):
                changed += sum(_replace(database, *each, place, here) for each in ADDRESSES)
    return changed


def _replace(database: sqlite3.Connection, table: str, column: str, old: str, new: str) -> int:
    text = (
        f"update {table} set {column} = ? || substr({column}, ?) where substr({column}, 1, ?) = ?"
    )
    begins = f"{old}/"
    return database.execute(text, (new, len(begins), len(begins), begins)).rowcount
