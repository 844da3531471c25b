"""encoder.json, which says how the encoder in a stage's folder is built; it is read warily.

Stores and encoders are handed around, and some arguments of `timm.create_model` fetch or unpickle
other files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import methods
from methods.errors import InputError
from methods.parts.encoder import Encoder
from methods.values import did_you_mean, from_plain, refuse_deep, subclasses

LARGEST = 2**20
DEEPEST = 1000  # blocks: each costs time to build, whatever the weights are


@dataclass(frozen=True)
class Exported:
    """Name and arguments for `timm.create_model`, the encoder's class, statistics of its images."""

    model: str
    arguments: Mapping[str, Any]
    kind: str = ""
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9_]+", self.model):  # neither hf-hub:... nor a folder
            raise ValueError(f"model: {self.model!r} is not the name of one of timm's")
        known = known_arguments()
        for name, value in self.arguments.items():
            if name not in known:
                raise ValueError(f"arguments.{name}: unknown{did_you_mean(name, known)}")
            _check(f"arguments.{name}", value, DEEPEST if "depth" in name else LARGEST)


def known_arguments() -> frozenset[str]:
    """The arguments with which encoders are exported."""
    methods.names()  # a method may bring an encoder in its own file
    found = [cls for name, cls in subclasses(Encoder).items() if name != "Encoder"]
    return frozenset(name for cls in found for name in cls().timm()[1])


def _check(name: str, value: Any, largest: int) -> None:
    if isinstance(value, list):
        for each in value:
            _check(name, each, largest)
    elif isinstance(value, (int, float)) and not 0 <= value <= largest:
        raise ValueError(f"{name}: expected a number from 0 to {largest}, found {value}")
    elif value is not None and not isinstance(value, (int, float, str)):
        raise ValueError(f"{name}: expected a number or a word, found {value!r}")


def read_exported(folder: Path) -> Exported:
    """The encoder.json in `folder`; raises InputError naming the file and the field."""
    path = folder / "encoder.json"
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not an encoder's description ({error})") from None
    refuse_deep(plain, str(path))
    return from_plain(Exported, plain, str(path))
