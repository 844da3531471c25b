"""Valid files with something wrong in them, as hypothesis strategies."""

from __future__ import annotations

import contextlib
import copy
import json
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from methods.errors import InputError, StageError

# How many inputs a test tries by default, and in the long suite.
COUNTS = [pytest.param(120, id="some"), pytest.param(5000, id="many", marks=pytest.mark.long)]
SECONDS = 20.0

Path = tuple[Any, ...]

# Another type, another size, and what one might try in order to break something.
INTRUDERS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.sampled_from([2**31, 2**63, -(2**63), 10**30, 16**6000]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["", "../../x", "/dev/null", "a\nb", "$(id)", "`id`", "\x00", "\u202e", "~no/x"]
    ),
    st.lists(st.integers(0, 2), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(0, 2), max_size=2),
    st.sampled_from([{"type": "ViT"}, {"type": []}, {"type": "Nothing"}, {"": 1}, [[[]]]]),
    st.integers(90, 150).map(lambda depth: _nested(depth)),
)


def _nested(depth: int) -> Any:
    found: Any = 1
    for level in range(depth):
        found = [found] if level % 2 else {"a": found}
    return found


def places(plain: Any, at: Path = ()) -> Iterator[Path]:
    """The path of every value in plain data."""
    if at:
        yield at
    if isinstance(plain, dict):
        for name, value in plain.items():
            yield from places(value, (*at, name))
    elif isinstance(plain, list):
        for place, value in enumerate(plain):
            yield from places(value, (*at, place))


@st.composite
def mutated(draw: st.DrawFn, plain: Any) -> Any:
    """`plain` with one to three values deleted, doubled, replaced, renamed or swapped."""
    plain = copy.deepcopy(plain)
    for _ in range(draw(st.integers(1, 3))):
        known = list(places(plain))
        if not known:
            break
        *above, last = draw(st.sampled_from(known))
        inside = plain
        for name in above:
            inside = inside[name]
        _change(draw, inside, last, plain)
    return plain


def _change(draw: st.DrawFn, inside: Any, last: Any, plain: Any) -> None:
    how = draw(st.sampled_from(["replace", "replace", "delete", "double", "rename", "swap"]))
    if how == "replace":
        inside[last] = copy.deepcopy(draw(INTRUDERS))
    elif how == "swap":
        other = plain
        for name in draw(st.sampled_from(list(places(plain)))):
            other = other[name]
        inside[last] = copy.deepcopy(other)
    elif how == "delete":
        del inside[last]
    elif how == "double" and isinstance(inside, list):
        inside.append(copy.deepcopy(inside[last]))
    elif isinstance(inside, dict):
        inside[draw(st.text(max_size=6)) if how == "rename" else f"{last}2"] = inside[last]
        if how == "rename":
            inside.pop(last, None)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` cut, with bytes changed or lines lost, or something else altogether."""
    how = draw(st.sampled_from(["cut", "flip", "insert", "lines", "other", "mark"]))
    place = draw(st.integers(0, len(content)))
    if how == "cut":
        return content[:place]
    if how == "flip":
        count = draw(st.integers(1, 4))
        return (
            content[:place]
            + draw(st.binary(min_size=count, max_size=count))
            + content[place:][count:]
        )
    if how == "insert":
        return content[:place] + draw(st.one_of(st.binary(max_size=6), _texts())) + content[place:]
    if how == "lines":
        lines = content.splitlines(keepends=True)
        return b"".join(draw(st.lists(st.sampled_from(lines or [b""]), max_size=len(lines) + 2)))
    if how == "mark":
        return b"\xef\xbb\xbf" + content
    return draw(st.one_of(st.binary(max_size=60), _texts()))


def _texts() -> st.SearchStrategy[bytes]:
    texts = st.one_of(
        st.text(max_size=60), st.sampled_from(["", "[" * 3000, '{"a":' * 3000, "\x00"])
    )
    return texts.map(lambda text: text.encode("utf-8", "surrogatepass"))


def toml(plain: Any) -> str:
    """Plain data as TOML, tables inside as inline tables; None is left out."""
    return "".join(f"{_key(k)} = {_value(v)}\n" for k, v in plain.items() if v is not None)


def _key(name: Any) -> str:
    return json.dumps(str(name), ensure_ascii=False)


def _value(plain: Any) -> str:
    if isinstance(plain, dict):
        inside = ", ".join(f"{_key(k)} = {_value(v)}" for k, v in plain.items() if v is not None)
        return f"{{ {inside} }}"
    if isinstance(plain, list):
        return f"[{', '.join(_value(each) for each in plain)}]"
    if isinstance(plain, bool):
        return str(plain).lower()
    if isinstance(plain, int):
        return hex(plain) if plain > 2**64 else str(plain)
    if isinstance(plain, float):
        return repr(plain)  # nan and inf are TOML's own words
    return json.dumps(plain)


def tomls(plain: Mapping[str, Any]) -> st.SearchStrategy[bytes]:
    """TOML files: mutated values, or a damaged text."""
    whole = toml(plain).encode()
    changed = mutated(dict(plain)).map(lambda each: toml(each).encode("utf-8", "surrogatepass"))
    return st.one_of(changed, changed, damaged(whole))


def jsons(plain: Any) -> st.SearchStrategy[bytes]:
    """JSON files: mutated values, or a damaged text."""
    whole = json.dumps(plain, indent=1).encode()
    return st.one_of(mutated(plain).map(_json), mutated(plain).map(_json), damaged(whole))


def _json(plain: Any) -> bytes:
    try:
        return json.dumps(plain).encode()
    except ValueError:  # a number that is too long to be written
        return b'{"number": 1' + b"0" * 5000 + b"}"


def attempt(read: Callable[[], Any], names: tuple[str, ...]) -> bool:
    """Whether `read` took its file; refusing it, it must say one of `names`, and be in time."""
    try:
        with time_limit(SECONDS):
            read()
    except (InputError, StageError) as error:
        told = str(error)
        assert any(name in told for name in names), f"{told!r} names none of {names}"
        return False
    return True


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Ends what hangs with an AssertionError."""

    def hung(*_: Any) -> None:
        raise AssertionError(f"not done in {seconds} s")

    before = signal.signal(signal.SIGALRM, hung)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def try_all(inputs: st.SearchStrategy[Any], count: int, read: Callable[[Any], bool]) -> None:
    """Calls `read` with `count` inputs; it says whether the input was taken.

    Both must occur: inputs that are all refused at the door would test nothing behind it. The same
    inputs each time by default, others in the long suite.
    """
    taken: list[bool] = []

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=count <= 1000,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs)
    def run(each: Any) -> None:
        taken.append(read(each))

    run()
    assert any(taken) and not all(taken), f"of {len(taken)} inputs {sum(taken)} were taken"
    print(f"{len(taken)} inputs, {sum(taken)} taken")
