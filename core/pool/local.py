"""The pool that is this process: it defines what is right."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, Self, TypeVar

from core.pool.protocol import Done, Failure, K, released, require_alone, require_open

T = TypeVar("T")
R = TypeVar("R")


class LocalPool:
    """One worker, number 0: this process. Items run in their order, each when its result is asked for.

    Values, items and results are passed as they are, so nothing is checked for whether it could be sent elsewhere: what
    other pools refuse for that reason works here. The number of torch's threads is left alone.
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
