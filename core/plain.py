"""Plain values: what a config holds before it is parsed. Bounds that hold for every key stand here, once."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from core.errors import ConfigError

MOST_VALUES, DEEPEST = 100_000, 32  # in a config, all aliases written out; levels of nesting
LONGEST = 120  # characters of a value in a message


def plain(value: Any, path: str = "") -> Any:
    """A copy in texts, numbers, booleans, null, lists and mappings, as YAML and JSON have them.

    ConfigError, with the dotted key, for anything else, for a number that is not finite or has no place in 64 bits, and
    for what nests in itself or past all bounds. Configs that are parsed already stay as they are.
    """
    return _Plain().copy(value, path, 0)


class _Plain:
    def __init__(self) -> None:
        self._count = 0

    def copy(self, value: Any, path: str, depth: int) -> Any:
        self._count += 1
        where = path or "config"
        if depth > DEEPEST or self._count > MOST_VALUES:
            raise ConfigError(f"{where[:LONGEST]}: nests in itself, or holds more than {MOST_VALUES:,} values")
        if value is None or isinstance(value, bool | str) or _is_parsed(value):
            return value
        if isinstance(value, int | float):
            return _number(value, where)
        if isinstance(value, Mapping):
            return {
                _key(key, where): self.copy(item, f"{path}.{key}" if path else str(key), depth + 1)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.copy(item, f"{path}.{i}", depth + 1) for i, item in enumerate(value)]
        raise ConfigError(f"{where}: {show(value)} is not a plain value")


def _is_parsed(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _number(value: float, where: str) -> float:
    if isinstance(value, int):
        if value.bit_length() > 63:
            raise ConfigError(f"{where}: should be a number of at most 64 bits, got one of {value.bit_length():,} bits")
    elif not math.isfinite(value):
        raise ConfigError(f"{where}: should be a finite number, got {value}")
    return value


def _key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise ConfigError(f"{where}: a key is a text, got {show(key)}")
    return key


def show(value: object) -> str:
    """As Python writes it, of a bounded length."""
    return cut(repr(value), LONGEST)


def cut(text: str, longest: int) -> str:
    """The beginning of a text that is longer than a message has room for."""
    return text if len(text) <= longest else f"{text[:longest]}..."
