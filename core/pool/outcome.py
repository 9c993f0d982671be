"""What a call to a worker gives: a result, or why there is none."""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from core.pool.protocol import Failure


@dataclass(frozen=True)
class TooLarge:
    """A result that was not sent, and its bytes."""

    size: int


@dataclass(frozen=True)
class Lost:
    """The worker has died. `began`: it may have begun what it was told; if not, it was dead before."""

    reason: str
    began: bool = True


@dataclass(frozen=True)
class NotSent:
    """An item or a result that could not be sent."""

    reason: str


Outcome = tuple[float, Any] | Failure | TooLarge | Lost | NotSent  # the tuple: seconds and result


def attempt(fn: Callable[[Any], Any], item: Any, max_result_bytes: int) -> tuple[float, Any] | Failure | TooLarge:
    """What `fn(item)` gives, in the worker."""
    began = time.perf_counter()
    try:
        result = fn(item)
    except BaseException as error:  # noqa: BLE001 - the driver raises it; SystemExit would end the worker
        return Failure.of(error)
    seconds = time.perf_counter() - began
    size = bytes_of(result)
    return TooLarge(size) if size > max_result_bytes else (seconds, result)


def bytes_of(value: Any) -> int:
    """Bytes of the tensors, arrays, strings and bytes in a tree of dicts, lists, tuples, sets and dataclasses."""
    total, waiting = 0, [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str | bytes | bytearray):
            total += len(value)
        elif isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple | set | frozenset):
            waiting.extend(value)
        elif isinstance(size := getattr(value, "nbytes", 0), int) and size:
            total += size
        elif dataclasses.is_dataclass(value):
            waiting.extend(getattr(value, field.name) for field in dataclasses.fields(value))
    return total


def line_of(error: BaseException) -> str:
    """`Type: first line` of an error."""
    first = next(iter(str(error).strip().splitlines()), "").strip()
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
