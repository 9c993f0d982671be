"""What every pool of workers promises, and what goes wrong in it in words."""

import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

from core import errors
from core.errors import ConfigError, HanseError, WorkerError

Key = int | str
K = TypeVar("K", bound=Key)
T = TypeVar("T")
R = TypeVar("R")
T_co = TypeVar("T_co", covariant=True)


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


def released() -> ConfigError:
    """What every pool says about a value that is gone."""
    return ConfigError(
        "share: this value was released, or its pool is closed; keep it until the last run that reads it"
    )


def not_ours() -> ConfigError:
    """What a shared value says to a worker that would free it."""
    return ConfigError("share: a worker cannot release a value; do it where it was shared")


def require_alone(is_running: bool) -> None:
    """Refuses a second run while one is going on."""
    if is_running:
        raise ConfigError("run: another run of this pool is going on; finish or close its iterator first")


def require_open(is_open: bool) -> None:
    """Refuses the use of a closed pool."""
    if not is_open:
        raise ConfigError("pool: it is closed; open a new one")
