"""Hostile values, and every key of a config class with what must stand beside it.

python -m pytest -q tests/fuzz               a small, fixed sample
make sweep TESTS=tests/fuzz SWEEP=20         more of it
"""

import dataclasses
import os
import random
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from core.errors import HanseError

SWEEP = int(os.environ.get("HANSE_SWEEP", "1"))
HUGE = 2**62
INTEGERS = [-1, 0, 1, 3, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 10**5000]
FLOATS = [float("inf"), float("-inf"), float("nan"), 1e308, -1e308, 5e-324, -0.0, 0.5, 1e18]
TEXTS = ["", "\0", "a\0b", "\ud800", "x" * 256, "x" * 5000, "/" + "x" * 256, "~nobody/x", "/dev/null", "..", "\x1b[2J"]
LISTS: list[Any] = [[], [[]], ["x"], [1], [-1, HUGE], [2**40, 2**40], [None], [1] * 2000, (1,)]
MAPPINGS: list[Any] = [{}, {"a": 1}, {"kind": ["x"]}, {"kind": {}}, {"kind": None}, {"kind": 3}, {1: 2}, {None: 1}]
OTHERS = [None, True, False, b"x", object(), {1, 2}, [{"kind": ["x"]}], [{"kind": "nothing"}]]
VALUES: list[Any] = [*INTEGERS, *FLOATS, *TEXTS, *LISTS, *MAPPINGS, *OTHERS]


def _circular() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return [value, {"a": value}]


VALUES += _circular()


@dataclass(frozen=True)
class Key:
    """A dotted key; the kinds that its sections must have; and how a value stands there."""

    name: str
    kinds: dict[str, Any] = field(default_factory=dict)
    wrap: Callable[[Any], Any] = lambda value: value

    def overrides(self, value: Any) -> dict[str, Any]:
        return {**self.kinds, self.name: self.wrap(value)}


def keys_of(cls: Any, path: str = "", kinds: dict[str, Any] | None = None) -> Iterator[Key]:
    """Every key of a config class, of every kind of every section; of a run with its recipe's keys beside its own."""
    kinds, hints = kinds or {}, typing.get_type_hints(cls)
    for one in dataclasses.fields(cls):
        hint, name = hints[one.name], f"{path}.{one.name}" if path else one.name
        if not path and one.name == "recipe":
            yield from keys_of(hint)
            continue
        yield Key(name, kinds)
        if typing.get_origin(hint) is tuple:
            for member in _sections(typing.get_args(hint)[0]):
                yield from _in_a_list(member, name, kinds)
            continue
        for member in _sections(hint):
            kind = _kind(member)
            yield from keys_of(member, name, {**kinds, f"{name}.kind": kind} if kind else kinds)


def _in_a_list(member: Any, name: str, kinds: dict[str, Any]) -> Iterator[Key]:
    for one in dataclasses.fields(member):
        if one.name != "kind":
            yield Key(name, kinds, lambda value, key=one.name: [{"kind": _kind(member), key: value}])


def _sections(hint: Any) -> list[Any]:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return [t for t in (typing.get_args(hint) if union else (hint,)) if dataclasses.is_dataclass(t)]


def _kind(cls: Any) -> str | None:
    return next((str(one.default) for one in dataclasses.fields(cls) if one.name == "kind"), None)


def draws(name: str, count: int) -> list[Any]:
    """A sample of the hostile values, the same in every run; with a sweep, more of them."""
    return random.Random(name).sample(VALUES, min(len(VALUES), count * SWEEP))


def ends_well(work: Callable[..., Any], *given: Any) -> str:
    """Runs the work: "" if it was taken, else the one line of the error. Anything but an error of ours goes through."""
    message, exit_code = "", 2
    try:
        work(*given)
    except HanseError as error:
        message, exit_code = str(error), error.exit_code
        assert message, "an error without a word"
    assert exit_code in (2, 3, 4), message
    assert "\n" not in message, message
    return message
