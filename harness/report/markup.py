"""HTML and SVG elements, in which every text is escaped since names come from files of others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any


class Safe(str):
    """Markup that is finished; any other text is escaped when it becomes part of an element."""


VOID = frozenset({"meta", "input", "img", "br", "link"})


def element(name: str, /, *children: Any, **attributes: Any) -> Safe:
    """`<name attributes>children</name>`.

    Attribute names: `class_` is class, `data_value` is data-value. None and False leave an
    attribute or child out, True writes the bare name; lists of children are flattened.
    """
    words = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Safe(f"<{name}{words}>")
    return Safe(f"<{name}{words}>{join(children)}</{name}>")


def join(children: Iterable[Any]) -> Safe:
    """The children one after another, escaped where they are not Safe."""
    return Safe("".join(_child(child) for child in children))


def _attribute(key: str, value: Any) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(_text(value), quote=True)}"'


def _child(child: Any) -> str:
    if child is None or child is False:
        return ""
    if isinstance(child, Safe):
        return child
    if isinstance(child, list | tuple):
        return join(child)
    return escape(_text(child), quote=False)


def _text(value: Any) -> str:
    """Coordinates need no more than a hundredth of a pixel."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table as it stands, neither escaped nor padded."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
