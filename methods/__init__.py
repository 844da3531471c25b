"""Masked-image-modelling methods. A method is one file of this folder with a METHOD in it."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from methods.errors import InputError

if TYPE_CHECKING:
    from methods.parts.model import Method

NO_METHODS = frozenset({"errors", "values", "pretrain", "released"})
"""Modules of this folder that are not looked into for a METHOD."""


@functools.cache
def _modules() -> dict[str, ModuleType]:
    """Every method's module by name, without importing torch."""
    found = {}
    for each in pkgutil.iter_modules(__path__):
        if not each.ispkg and each.name not in NO_METHODS:
            module = importlib.import_module(f"methods.{each.name}")
            if hasattr(module, "METHOD"):
                found[module.METHOD.name] = module
    return found


def _module(name: str) -> ModuleType:
    from methods.values import did_you_mean

    if name not in _modules():
        raise InputError(f"no method is called {name!r}{did_you_mean(name, _modules())}")
    return _modules()[name]


def names() -> tuple[str, ...]:
    """The methods' names, sorted."""
    return tuple(sorted(_modules()))


def get(name: str) -> Method:
    """The method `name` as published; raises InputError with the nearest name."""
    method: Method = _module(name).METHOD
    return method


def evaluations(name: str) -> Mapping[str, Mapping[str, Any]]:
    """Where the method's published evaluations differ: {stage kind: {dotted field: value}}."""
    found: Mapping[str, Mapping[str, Any]] = getattr(_module(name), "EVALUATIONS", {})
    return found


def schedules(name: str) -> Mapping[str, Mapping[str, Any]]:
    """Further published schedules: {name: {dotted field of Method: value}}."""
    found: Mapping[str, Mapping[str, Any]] = getattr(_module(name), "SCHEDULES", {})
    return found
