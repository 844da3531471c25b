"""A copy of the code as it was submitted: a job that waits for days runs what was meant."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from pathlib import Path

from harness.provenance import CODE

PACKAGES = ("harness", "methods", "evals")


def sources() -> list[Path]:
    """The files of the three packages, below CODE, in a fixed order."""
    found = [path for name in PACKAGES for path in (CODE / name).rglob("*") if path.is_file()]
    return sorted(path for path in found if "__pycache__" not in path.parts)


def snapshot(root: Path) -> Path:
    """root/snapshots/<hash>/ with a copy of the packages; made once for each state of the code."""
    files = sources()
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(CODE)}\0".encode())
        digest.update(path.read_bytes())
    place = root / "snapshots" / digest.hexdigest()[:10]
    if place.is_dir():
        return place
    aside = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    try:
        for path in files:
            copy = aside / path.relative_to(CODE)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        os.rename(aside, place)
    except OSError:
        if not place.is_dir():  # else another `harness run` was faster
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return place
