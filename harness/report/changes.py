"""What a row changes of its method, in words: parts by their names in tables, else the fields."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from methods.errors import InputError
from methods.values import from_plain

if TYPE_CHECKING:
    from methods.parts.model import Method

Plain = Mapping[str, Any]


def changes(changed: Plain, task: Plain, default: Plain) -> tuple[str, str]:
    """What differs from the method as it is defined, and the same with every part written out.

    `changed` maps dotted fields to the study's values. `task` and `default` are the pretraining
    tasks, as plain data, of the row and of its method's default row; empty where neither has begun,
    and then the study's own words stand for the values.
    """
    new, old = _method(task), _method(default)
    short, whole = [], []
    for field, value in changed.items():
        words = _written(field, value, default)
        known = _differences(field, _at(old, field), _at(new, field)) if old and new else []
        short += known or [words]
        whole.append(words)
    return "; ".join(short), "; ".join(whole)


def _method(task: Plain) -> Method | None:
    """The method of a task, or None where there is none that this version can read."""
    import methods
    from methods.parts.model import Method

    methods.names()  # makes the parts known that methods bring in their own files
    try:
        return from_plain(Method, _at(task, "method"))
    except InputError:
        return None


def _at(value: Any, path: str) -> Any:
    """The part or field at a dotted path of plain data or of values, or None."""
    for name in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(name)
        elif isinstance(value, list | tuple):
            value = value[int(name)] if name.isdigit() and int(name) < len(value) else None
        else:
            value = getattr(value, name, None)
    return value


def _differences(path: str, old: Any, new: Any) -> list[str]:
    """The fields at and below `path` in which two values differ."""
    if old == new:
        return []
    if dataclasses.is_dataclass(old) and type(old) is type(new):
        fields = [field.name for field in dataclasses.fields(old)]
        pairs = [(name, getattr(old, name), getattr(new, name)) for name in fields]
    elif _parts(old) and _parts(new):
        if len(old) != len(new):
            return [f"{path}: {_with_and_without(old, new)}"]
        pairs = [(str(number), *each) for number, each in enumerate(zip(old, new, strict=True))]
    else:
        before, after = _shown(old), _shown(new)
        if before == after:  # two encoders may go by one name
            before, after = (f"{type(each).__name__} {before}" for each in (old, new))
        return [f"{path}: {before} → {after}"]
    return [text for name, *each in pairs for text in _differences(f"{path}.{name}", *each)]


def _parts(value: Any) -> bool:
    return isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value))


def _with_and_without(old: tuple[Any, ...], new: tuple[Any, ...]) -> str:
    lost = [f"without {_shown(each)}" for each in old if each not in new]
    won = [f"with {_shown(each)}" for each in new if each not in old]
    return ", ".join([*lost, *won]) or f"{len(old)} → {len(new)}"


def _shown(value: Any) -> str:
    """A part by its name in tables, anything else as it is written in TOML."""
    if hasattr(value, "describe"):
        return str(value.describe())
    if dataclasses.is_dataclass(value):
        return type(value).__name__
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _written(field: str, value: Any, default: Plain) -> str:
    """`decoder.depth: 8 → 4`, or `decoder.depth = 4` where the default is not known."""
    old = _at(default, f"method.{field}")
    old = _at(default, field) if old is None else old
    return (
        f"{field} = {_plain(value)}" if old is None else f"{field}: {_plain(old)} → {_plain(value)}"
    )


def _plain(value: Any) -> str:
    """`Random(ratio=0.75)`: a part by its type and fields, anything else as it is in TOML."""
    if isinstance(value, Mapping):
        fields = ", ".join(f"{k}={_plain(v)}" for k, v in value.items() if k != "type")
        return f"{value.get('type', '')}({fields})" if fields else str(value.get("type", "()"))
    if isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        return ", ".join(map(_plain, value))
    return value if isinstance(value, str) else json.dumps(value, default=str)
