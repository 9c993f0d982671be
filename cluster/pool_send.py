"""What a `RayPool` sends to its workers, tried before anything runs: an error here is one line and says which part; and
what comes back.

Imported only while a session is open.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)

from cluster.pool_worker import tensors_as_arrays
from core.errors import ConfigError, HanseError, ResourceError
from core.pool.outcome import Lost, NotSent, Outcome

CHUNK = 256  # items that are tried at once
LOST = (RayActorError, WorkerCrashedError, NodeDiedError, OutOfMemoryError, ObjectLostError)


def put_function(fn: Any) -> "ray.ObjectRef[Any]":
    """A function in the object store, from where each worker takes it once. ConfigError if it cannot be sent."""
    try:
        return ray.put(fn)
    except Exception as error:
        hint = "; define it at the top level of a module, and bind what it needs with functools.partial"
        raise _refusal("run: the function", error, hint) from error


def put_value(value: Any) -> "ray.ObjectRef[Any]":
    """A value in the object store, its tensors as arrays. ConfigError if it cannot be sent, ResourceError if it does
    not fit."""
    try:
        with tensors_as_arrays():
            return ray.put(value)
    except ObjectStoreFullError as error:
        raise ResourceError(f"share: the value does not fit into Ray's object store ({line_of(error)})") from error
    except Exception as error:
        raise _refusal("share: the value", error) from error


def require_serializable(items: Mapping[Any, Any]) -> None:
    """ConfigError if one cannot be sent. All are tried at once, some hundred at a time, since one by one is slow."""
    values = iter(items.values())
    while chunk := list(itertools.islice(values, CHUNK)):
        try:
            ray.put(chunk)
        except Exception as error:
            raise _first_refused(items) or _refusal("run: an item", error) from error


def _first_refused(items: Mapping[Any, Any]) -> HanseError | None:
    for key, item in items.items():
        try:
            ray.put(item)
        except Exception as error:  # noqa: BLE001 - the caller raises it
            return _refusal(f"run: item {key}", error, "; keep to plain values, arrays and tensors")
    return None


def _refusal(what: str, error: Exception, hint: str = "") -> HanseError:
    if isinstance(error, HanseError):
        return error
    return ConfigError(f"{what} cannot be sent to a worker ({line_of(error)}){hint}")


def outcomes(calls: "Sequence[ray.ObjectRef[Any]]") -> list[Outcome | str]:
    """What calls gave that are over."""
    try:
        return list(ray.get(list(calls)))
    except RayError:
        return [_outcome(call) for call in calls]


def _outcome(call: "ray.ObjectRef[Any]") -> Outcome | str:
    try:
        outcome: Outcome | str = ray.get(call)
        return outcome
    except LOST as error:
        return Lost(line_of(error))
    except RayError as error:
        return NotSent(line_of(error))


def line_of(error: BaseException) -> str:
    """The line of an error that says most: of Ray's long texts the one with the exit's cause."""
    cause = error.__cause__ or getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).strip().splitlines()] or [""]
    exits = [line.partition("Worker exit detail: ")[2] for line in lines if "Worker exit detail: " in line]
    said = exits[0].partition(" Some common causes")[0] if exits else lines[0]
    return f"{type(cause).__name__}: {said}"
