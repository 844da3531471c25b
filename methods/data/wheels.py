"""Files inside installed packages, found without importing the packages (torch, scikit-image)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from methods.errors import InputError


def package_file(package: str, *parts: str) -> Path:
    """The path of a file of an installed package; InputError where it is not there."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, *parts)
        if path.is_file():
            return path
    raise InputError(f"{'/'.join((package, *parts))} is not installed: pip install this package")
