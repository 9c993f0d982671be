"""Handles of shared values, and those whose value the processes of a pool read from one file in memory."""

from abc import ABC, abstractmethod
from typing import Any, Generic, Protocol, TypeVar

from core.pool.protocol import not_ours, released
from core.pool.wire import published

T = TypeVar("T")
_read: dict[str, Any] = {}  # what this process has read, by file


class Owner(Protocol):
    """The pool that a value was given to."""

    def release(self, name: str) -> None:
        """Frees a shared value, here and in the workers."""


class Handle(ABC, Generic[T]):
    """A handle of a shared value. It travels as its name, so it costs an item next to nothing."""

    def __init__(self, name: str, pool: Owner | None = None) -> None:
        self._name, self._pool = name, pool

    @abstractmethod
    def get(self) -> T:
        """The value; its tensors and arrays lie in memory that others read too. ConfigError if it was released."""

    def release(self) -> None:
        """Frees the value. Raises ConfigError in a worker: only the process that shared it knows who needs it."""
        if self._pool is None:
            raise not_ours()
        self._pool.release(self._name)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._name,)


class ProcessShared(Handle[T]):
    """A value in a file, which is its name."""

    def get(self) -> T:
        if self._name not in _read:
            try:
                _read[self._name] = published(self._name)
            except FileNotFoundError:
                raise released() from None
        value: T = _read[self._name]
        return value


def forget(file: str) -> None:
    """Lets go of a value in this process."""
    _read.pop(file, None)
