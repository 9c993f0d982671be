"""Persistent workers to spread many small pieces of work over: the protocol, and the pool that is this process.

Federated cohorts, search slots, ensembles and cross-validation hand a function and its items to a `WorkerPool` and take
each result as it finishes. `LocalPool` defines what is right; `cluster.pool.RayPool` does the same on many machines.
"""

import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from core import errors
from core.errors import ConfigError, HanseError, WorkerError

Key = int | str
K = TypeVar("K", bound=Key)
T = TypeVar("T")
R = TypeVar("R")
T_co = TypeVar("T_co", covariant=True)
MEMORY = 0.5  # of an item's earlier times in its moving average


@dataclass(frozen=True, slots=True)
class Done(Generic[K, R]):
    """One finished item: its key, what the function gave, the seconds it took and the number of its worker."""

    key: K
    result: R
    seconds: float
    worker: int


class Shared(Protocol[T_co]):
    """A value that was given to a pool once; inside an item or a `functools.partial` it travels as a mere handle."""

    def get(self) -> T_co:
        """The value, here or in any worker. Its tensors and arrays are common property: read them, never write."""

    def release(self) -> None:
        """Frees the value. Dropping the last handle does the same."""


class WorkerPool(Protocol):
    """Persistent workers. One run at a time; a context manager that ends its workers."""

    @property
    def workers(self) -> int:
        """How many there are now; one that is starting, or being replaced, counts."""

    def share(self, value: T) -> Shared[T]:
        """Gives every worker `value`, a tree with tensors and arrays as leaves, without a copy for each of them."""

    def run(
        self, fn: Callable[[T], R], items: Mapping[K, T], cost: Mapping[K, float] | None = None
    ) -> Iterator[Done[K, R]]:
        """`fn(item)` for each item, yielded as they finish, each exactly once. `fn` must not care where it runs.

        `cost` says in any unit which items take long, until the pool has learned it. Closing the iterator early, an
        error or Ctrl-C cancels what is outstanding, and the pool can run again.

        Raises ConfigError, before anything runs, if the function or an item cannot be sent to a worker. An exception
        in `fn` ends the run with `item KEY failed on worker W: Type: message`: a HanseError keeps its class, any other
        becomes a WorkerError; the worker's traceback is in the error's `__notes__`.
        """

    def close(self) -> None:
        """Ends the workers, also in the middle of a run."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class Failure:
    """An exception in an item's function, as plain text: the exception itself may not survive the way here."""

    kind: str
    message: str
    traceback: str
    error_class: str  # of core.errors, that the user sees

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """Call it while `error` is being handled."""
        known = (c.__name__ for c in type(error).__mro__ if c.__module__ == errors.__name__)
        return cls(type(error).__name__, str(error), traceback.format_exc(), next(known, WorkerError.__name__))

    def error(self, what: str) -> HanseError:
        """The one-line error `WHAT: Type: message` with the traceback as a note."""
        first = next(iter(self.message.strip().splitlines()), "")
        error: HanseError = getattr(errors, self.error_class)(f"{what}: {self.kind}{f': {first}' if first else ''}")
        error.add_note(self.traceback)
        return error


class ItemTimes:
    """The seconds an item takes, by key: a moving average over all runs of a pool."""

    def __init__(self) -> None:
        self._seconds: dict[Key, float] = {}

    def learn(self, key: Key, seconds: float) -> None:
        """Takes in how long an item took this time."""
        self._seconds[key] = MEMORY * self._seconds.get(key, seconds) + (1 - MEMORY) * seconds

    def of(self, key: Key) -> float | None:
        """Seconds, or None where the key has never run."""
        return self._seconds.get(key)

    def longest_first(self, keys: Iterable[K], cost: Mapping[K, float]) -> list[K]:
        """The keys by falling time. `cost` stands in for a time not yet learned, in the unit that the keys with both
        give it, else in seconds; a key with neither counts as the mean. Equal ones keep their order."""
        keys = list(keys)
        guesses = {key: seconds for key in keys if (seconds := self._seconds.get(key)) is not None}
        both = [key for key in guesses if key in cost]
        total = sum(cost[key] for key in both)
        unit = sum(guesses[key] for key in both) / total if total > 0 else 1.0
        guesses = {key: unit * cost[key] for key in keys if key in cost} | guesses
        mean = sum(guesses.values()) / max(1, len(guesses))
        return sorted(keys, key=lambda key: -guesses.get(key, mean))


class LocalPool:
    """One worker, number 0: this process. Items run in their order, each when its result is asked for.

    Values, items and results are passed as they are, so nothing is checked for whether it could be sent elsewhere: what
    a `RayPool` refuses for that reason works here. The number of torch's threads is left alone.
    """

    def __init__(self) -> None:
        self._is_open = True
        self._is_running = False

    @property
    def workers(self) -> int:
        return 1

    def share(self, value: T) -> "LocalShared[T]":
        require_open(self._is_open)
        return LocalShared(value)

    def run(
        self, fn: Callable[[T], R], items: Mapping[K, T], cost: Mapping[K, float] | None = None
    ) -> Iterator[Done[K, R]]:
        require_open(self._is_open)
        return self._results(fn, items)

    def _results(self, fn: Callable[[T], R], items: Mapping[K, T]) -> Iterator[Done[K, R]]:
        require_alone(self._is_running)
        self._is_running = True
        try:
            for key, item in items.items():
                require_open(self._is_open)
                began = time.perf_counter()
                try:
                    result = fn(item)
                except (Exception, SystemExit) as error:
                    raise Failure.of(error).error(f"item {key} failed on worker 0") from error
                yield Done(key, result, time.perf_counter() - began, 0)
        finally:
            self._is_running = False

    def close(self) -> None:
        self._is_open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


class LocalShared(Generic[T]):
    """A value shared within this process."""

    def __init__(self, value: T) -> None:
        self._value = [value]

    def get(self) -> T:
        if not self._value:
            raise released()
        return self._value[0]

    def release(self) -> None:
        self._value.clear()


def released() -> ConfigError:
    """What every pool says about a value that is gone."""
    return ConfigError(
        "share: this value was released, or its pool is closed; keep it until the last run that reads it"
    )


def require_alone(is_running: bool) -> None:
    """Refuses a second run while one is going on."""
    if is_running:
        raise ConfigError("run: another run of this pool is going on; finish or close its iterator first")


def require_open(is_open: bool) -> None:
    """Refuses the use of a closed pool."""
    if not is_open:
        raise ConfigError("pool: it is closed; open a new one")
