"""Frozen dataclasses to and from plain data: strict, with "did you mean" and a fingerprint."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from methods.errors import InputError

T = TypeVar("T")
DEEPEST = 100  # levels of nesting in files; recursion over more would end in an error of Python's
LARGEST = 2**63


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or the list of choices where none is near."""
    known = sorted(choices)
    near = difflib.get_close_matches(str(word), known, n=1)
    if near:
        return f" (did you mean {near[0]!r}?)"
    return f" (known: {', '.join(known)})" if known else ""


def fingerprint(plain: Any) -> str:
    """First 10 hexadecimal digits of the SHA-256 of the canonical JSON of `plain`."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def refuse_deep(plain: Any, where: str) -> None:
    """Raise InputError where plain data is nested more than DEEPEST levels deep."""
    level = [plain]
    for _ in range(DEEPEST):
        level = [item for each in level for item in _items(each)]
        if not level:
            return
    raise InputError(f"{where}: nested more than {DEEPEST} levels deep")


def _items(plain: Any) -> Iterable[Any]:
    if isinstance(plain, Mapping):
        return plain.values()
    return plain if isinstance(plain, (list, tuple)) else ()


@contextmanager
def inputs_of(where: str) -> Iterator[None]:
    """Puts `where` before the message of an InputError that knows its place no better."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


_HINTS: dict[Any, dict[str, Any]] = {}


def _hints(cls: Any) -> dict[str, Any]:
    if cls not in _HINTS:
        _HINTS[cls] = typing.get_type_hints(cls)
    return _HINTS[cls]


def _fields(cls: type) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(cls) if field.init}


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def to_plain(value: Any, sparse: bool = False, declared: Any = Any) -> Any:
    """Nested dicts, lists and scalars that `from_plain` reads back.

    A value whose class is not exactly the `declared` one says its class in "type". With `sparse`,
    fields at their default are left out, so a new field with a default changes no fingerprint, and
    so are fields declared with `compare=False`, such as where a file of known content lies.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        cls = type(value)
        exact = declared is cls or cls in get_args(declared)
        plain: dict[str, Any] = {} if exact else {"type": cls.__name__}
        for name, field in _fields(cls).items():
            item = getattr(value, name)
            if not (sparse and (item == _default(field) or not field.compare)):
                plain[name] = to_plain(item, sparse, _hints(cls)[name])
        return plain
    if isinstance(value, Mapping):
        declared = get_args(declared)[1] if len(get_args(declared)) == 2 else Any
        return {str(key): to_plain(item, sparse, declared) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        hints = get_args(declared)
        return [to_plain(item, sparse, _item_hint(hints, i)) for i, item in enumerate(value)]
    # A whole number in a float's place is written as `from_plain` will read it: 400 as 400.0.
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole and _is_float(declared) else value


def _item_hint(hints: tuple[Any, ...], position: int) -> Any:
    known = [hint for hint in hints if hint is not Ellipsis and hint is not type(None)]
    if len(known) == 1 and get_origin(known[0]) is tuple:  # tuple[...] | None
        return _item_hint(get_args(known[0]), position)
    if not known:
        return Any
    return known[0] if len(known) == 1 else known[min(position, len(known) - 1)]


def _is_float(hint: Any) -> bool:
    return hint is float or (float in get_args(hint) and int not in get_args(hint))


def from_plain(cls: type[T], plain: Any, where: str = "") -> T:
    """The value of class `cls` (or of the subclass named by "type") that `plain` describes.

    Raises InputError naming the place `where.field` for an unknown field, a wrong type, a missing
    field, or whatever the value's own `__post_init__` refuses with a ValueError.
    """
    if not isinstance(plain, Mapping):
        raise InputError(f"{where or cls.__name__}: expected a table, found {_shown(plain)}")
    plain = dict(plain)
    cls = _named_class(cls, plain.pop("type", None), where)
    fields, hints = _fields(cls), _hints(cls)
    for name in plain:
        if name not in fields:
            raise InputError(f"{_at(where, name)}: unknown field{did_you_mean(name, fields)}")
    known = {name: _convert(hints[name], item, _at(where, name)) for name, item in plain.items()}
    for name, field in fields.items():
        if name not in known and _default(field) is dataclasses.MISSING:
            raise InputError(f"{_at(where, name)}: missing")
    return construct(cls, known, where)


def construct(cls: type[T], known: Mapping[str, Any], where: str) -> T:
    """`cls(**known)`, with the error of its checks told as an InputError at `where`.

    Checks may divide by a field, and by one that is 0.
    """
    try:
        return cls(**known)
    except (ValueError, ArithmeticError) as error:
        raise InputError(f"{where or cls.__name__}: {error}") from None


def _at(where: str, name: Any) -> str:
    return f"{where}.{name}" if where else str(name)


def _shown(plain: Any) -> str:
    try:
        text = repr(plain)
    except ValueError:  # Python writes no number of more than 4300 digits
        text = "a huge number"
    return text if len(text) <= 60 else text[:57] + "..."


def _word(plain: Any) -> str:
    return plain if isinstance(plain, str) else ""


def subclasses(cls: type) -> dict[str, type]:
    """Every dataclass at or below `cls`, by name."""
    found = {cls.__name__: cls} if dataclasses.is_dataclass(cls) and _fields_or_leaf(cls) else {}
    children: list[type] = cls.__subclasses__()
    for child in children:
        found |= subclasses(child)
    return found


def _fields_or_leaf(cls: type) -> bool:
    return bool(dataclasses.fields(cls)) or not cls.__subclasses__()


def _named_class(cls: type[T], name: Any, where: str) -> type[T]:
    if name is None or name == cls.__name__:
        if name is None and cls.__subclasses__() and not dataclasses.fields(cls):  # type: ignore[arg-type]
            known = ", ".join(sorted(subclasses(cls)))
            raise InputError(f"{_at(where, 'type')}: missing (known: {known})")
        return cls
    choices = subclasses(cls)
    if not isinstance(name, str) or name not in choices:
        raise InputError(
            f"{_at(where, 'type')}: no {cls.__name__.lower()} is called {_shown(name)}"
            f"{did_you_mean(_word(name), choices)}"
        )
    return choices[name]


def _convert(hint: Any, plain: Any, where: str) -> Any:
    origin = get_origin(hint)
    if hint is Any:
        return plain
    if origin in (Union, types.UnionType):
        return _convert_union(get_args(hint), plain, where)
    if origin is Literal:
        return _convert_literal(get_args(hint), plain, where)
    if origin is tuple:
        return _convert_tuple(get_args(hint), plain, where)
    if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if not isinstance(plain, Mapping):
            raise InputError(f"{where}: expected a table, found {_shown(plain)}")
        item = get_args(hint)[1]
        return {str(key): _convert(item, each, _at(where, key)) for key, each in plain.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_plain(hint, plain, where)
    return _convert_scalar(hint, plain, where)


def _convert_union(choices: tuple[Any, ...], plain: Any, where: str) -> Any:
    if plain is None and type(None) in choices:
        return None
    error = InputError(f"{where}: expected something else than {_shown(plain)}")
    for choice in choices:
        if choice is not type(None):
            try:
                return _convert(choice, plain, where)
            except InputError as refused:
                error = refused
    raise error


def _convert_literal(choices: tuple[Any, ...], plain: Any, where: str) -> Any:
    for choice in choices:
        if plain == choice and type(plain) is type(choice):
            return choice
    words = [str(choice) for choice in choices]
    raise InputError(f"{where}: {_shown(plain)} is not a choice{did_you_mean(_word(plain), words)}")


def _convert_tuple(items: tuple[Any, ...], plain: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(plain, (list, tuple)):
        raise InputError(f"{where}: expected a list, found {_shown(plain)}")
    if len(items) == 2 and items[1] is Ellipsis:
        return tuple(_convert(items[0], each, _at(where, i)) for i, each in enumerate(plain))
    if len(plain) != len(items):
        raise InputError(f"{where}: expected {len(items)} items, found {len(plain)}")
    pairs = zip(items, plain, strict=True)
    return tuple(_convert(hint, each, _at(where, i)) for i, (hint, each) in enumerate(pairs))


def _convert_scalar(hint: Any, plain: Any, where: str) -> Any:
    if hint is float and isinstance(plain, int) and not isinstance(plain, bool):
        try:
            return float(plain)
        except OverflowError:
            raise InputError(f"{where}: {_shown(plain)} is too large") from None
    if not isinstance(plain, hint) or (isinstance(plain, bool) and hint is not bool):
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}
        raise InputError(f"{where}: expected {names.get(hint, hint)}, found {_shown(plain)}")
    if isinstance(plain, int) and abs(plain) >= LARGEST:
        raise InputError(f"{where}: {_shown(plain)} is too large")
    if isinstance(plain, float) and not math.isfinite(plain):
        raise InputError(f"{where}: {plain} is not a finite number")
    return plain


def with_fields(value: Any, changes: Mapping[str, Any], where: str) -> Any:
    """`value` with the fields of `changes` read from plain data, all at once.

    Names may be dotted, with positions of a list as numbers ("objectives.0.loss"). A table without
    "type" changes just the fields it names; anything else replaces the field. Checks see the
    result only, so that fields which depend on each other may change together. Raises InputError
    naming `where` and the field.
    """
    return _merged(type(value), value, nested(changes, where), where)


def nested(changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """{"a.b": 1, "a.c": 2} as {"a": {"b": 1, "c": 2}}; a later change wins over an earlier one."""
    table: dict[str, Any] = {}
    for path, plain in changes.items():
        *parents, last = path.split(".")
        place = table
        for name in parents:
            below = place.get(name)
            place[name] = dict(below) if isinstance(below, Mapping) else {}
            place = place[name]
        old = place.get(last)
        both = isinstance(old, Mapping) and isinstance(plain, Mapping) and "type" not in plain
        place[last] = {**old, **plain} if both else plain  # type: ignore[dict-item]
    if "" in table:
        raise InputError(f"{where}: a field's name is empty")
    return table


def _merged(hint: Any, old: Any, plain: Any, where: str) -> Any:
    if not isinstance(plain, Mapping):
        return _convert(hint, plain, where)
    if isinstance(old, tuple):
        return _merged_items(old, plain, where)
    if isinstance(old, Mapping):
        return _convert(hint, {**old, **plain}, where)
    if not dataclasses.is_dataclass(old) or plain.get("type") not in (None, type(old).__name__):
        return _convert(hint, plain, where)
    cls = type(old)
    hints, known = _hints(cls), {name: getattr(old, name) for name in _fields(cls)}
    for name, item in plain.items():
        if name == "type":
            continue
        if name not in known:
            raise InputError(f"{_at(where, name)}: unknown field{did_you_mean(name, known)}")
        known[name] = _merged(hints[name], known[name], item, _at(where, name))
    return construct(cls, known, where)


def _merged_items(items: tuple[Any, ...], plain: Mapping[str, Any], where: str) -> Any:
    changed = list(items)
    for name, item in plain.items():
        if not name.isdecimal() or len(name) > 9 or int(name) >= len(items):
            known = f"a position from 0 to {len(items) - 1}" if items else "nothing: it is empty"
            raise InputError(f"{_at(where, name)}: expected {known}")
        old = items[int(name)]
        changed[int(name)] = _merged(_base(old), old, item, _at(where, name))
    return tuple(changed)


def _base(value: Any) -> Any:
    """The most general dataclass above the class of `value`: what may take its place in a list."""
    above = [cls for cls in type(value).__mro__ if dataclasses.is_dataclass(cls)]
    return above[-1] if above else type(value)


def by_type(value: Any, changes: Mapping[str, Mapping[str, Any]], where: str) -> Any:
    """`value` with every part of a class named in `changes` given the fields listed there."""
    if isinstance(value, tuple):
        return tuple(by_type(item, changes, where) for item in value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    cls = type(value)
    known = {name: by_type(getattr(value, name), changes, where) for name in _fields(cls)}
    own = _at(where, cls.__name__)
    for name, item in nested(changes.get(cls.__name__, {}), own).items():
        if name not in known:
            raise InputError(f"{_at(own, name)}: unknown field{did_you_mean(name, known)}")
        known[name] = _merged(_hints(cls)[name], known[name], item, _at(own, name))
    return construct(cls, known, own if cls.__name__ in changes else where)
