"""Values: to and from plain data, strictly; changes; fingerprints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from methods.errors import InputError
from methods.values import by_type, fingerprint, from_plain, to_plain, with_fields


@dataclass(frozen=True)
class Shape:
    """Base."""


@dataclass(frozen=True)
class Square(Shape):
    side: int = 1


@dataclass(frozen=True)
class Circle(Shape):
    radius: float = 2.0
    width: float | None = None

    def __post_init__(self) -> None:
        if self.width is not None and self.width > self.radius:
            raise ValueError(f"width must be at most radius ({self.radius}), not {self.width}")


@dataclass(frozen=True)
class Drawing:
    frame: Shape = Square()
    shapes: tuple[Shape, ...] = ()
    pen: Literal["thin", "thick"] = "thin"
    circle: Circle = Circle()
    notes: Mapping[str, Any] = field(default_factory=dict)


DRAWING = Drawing(Circle(3.0), (Square(2), Circle()), notes={"by": "hand"})


def test_round_trip() -> None:
    for sparse in (False, True):
        assert from_plain(Drawing, to_plain(DRAWING, sparse)) == DRAWING


def test_defaults_stay_out_of_the_fingerprint() -> None:
    sparse = to_plain(DRAWING, sparse=True)
    assert sparse["frame"] == {"type": "Circle", "radius": 3.0}
    assert "pen" not in sparse
    spelled = from_plain(Drawing, {**sparse, "pen": "thin"})
    assert fingerprint(to_plain(spelled, sparse=True)) == fingerprint(sparse)


@pytest.mark.parametrize(
    ("plain", "told"),
    [
        ({"penn": "thin"}, "x.toml.penn: unknown field (did you mean 'pen'?)"),
        ({"pen": "thik"}, "x.toml.pen: 'thik' is not a choice (did you mean 'thick'?)"),
        ({"frame": {"type": "Squar"}}, "x.toml.frame.type: no shape is called 'Squar'"),
        ({"frame": {}}, "x.toml.frame.type: missing (known: Circle, Square)"),
        ({"circle": {"radius": "far"}}, "x.toml.circle.radius: expected a number, found 'far'"),
        ({"circle": {"radius": float("nan")}}, "x.toml.circle.radius: nan is not a finite number"),
        ({"circle": {"width": 9.0}}, "x.toml.circle: width must be at most radius (2.0), not 9.0"),
        ({"shapes": 3}, "x.toml.shapes: expected a list, found 3"),
        ({"shapes": [{"type": "Square", "side": True}]}, "x.toml.shapes.0.side: expected a whole"),
        ({"notes": 1}, "x.toml.notes: expected a table, found 1"),
        ([], "x.toml: expected a table, found []"),
    ],
)
def test_one_line_names_the_place(plain: Any, told: str) -> None:
    with pytest.raises(InputError) as caught:
        from_plain(Drawing, plain, "x.toml")
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_changes_are_made_at_once() -> None:
    changed = with_fields(DRAWING, {"circle.width": 5.0, "circle.radius": 6.0}, "--set")
    assert changed.circle == Circle(6.0, 5.0)
    assert with_fields(DRAWING, {"shapes.1.radius": 4}, "--set").shapes[1] == Circle(4.0)
    swapped = with_fields(DRAWING, {"shapes.0": {"type": "Circle"}}, "--set")
    assert swapped.shapes[0] == Circle()
    assert with_fields(DRAWING, {"frame": {"radius": 1}}, "--set").frame == Circle(1.0)
    with pytest.raises(InputError, match=r"--set.shapes.7: expected a position from 0 to 1"):
        with_fields(DRAWING, {"shapes.7": {"type": "Circle"}}, "--set")
    with pytest.raises(InputError, match=r"--set.circle.radus: unknown .*'radius'"):
        with_fields(DRAWING, {"circle.radus": 1}, "--set")


def test_a_scale_is_laid_over_parts_by_their_class() -> None:
    scaled = by_type(DRAWING, {"Circle": {"radius": 8.0}}, "scale")
    assert scaled.frame == Circle(8.0) and scaled.shapes == (Square(2), Circle(8.0))
    with pytest.raises(InputError, match="scale.Circle.size: unknown field"):
        by_type(DRAWING, {"Circle": {"size": 1}}, "scale")
