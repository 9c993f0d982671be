"""Batches prepared in turn with the steps that use them, or on threads beside those: the same batches, another pace.

Beside a step of Python's threads and torch's own, threads can cost more than they gain. Only the clock knows.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from statistics import median
from typing import TypeVar

T = TypeVar("T")
AHEAD = 4  # batches that are prepared while one is used
TRIED = 5  # steps that are timed in each of the two ways
WORTH = 100  # steps from which the trial, a fifth of them, can pay


def in_turn(prepare: Callable[[int], T], steps: Iterable[int]) -> Generator[tuple[int, T]]:
    """(step, what `prepare` makes of it), made when it is asked for."""
    return ((step, prepare(step)) for step in steps)


def ahead(prepare: Callable[[int], T], steps: Iterable[int]) -> Generator[tuple[int, T]]:
    """The same, made on threads before it is asked for."""
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1), "batches") as pool:
        waiting = deque[tuple[int, Future[T]]]()
        try:
            for step in steps:
                waiting.append((step, pool.submit(prepare, step)))
                if len(waiting) > AHEAD:
                    yield _first(waiting)
            while waiting:
                yield _first(waiting)
        finally:
            for _, future in waiting:
                future.cancel()


def _first(waiting: deque[tuple[int, Future[T]]]) -> tuple[int, T]:
    step, future = waiting.popleft()
    return step, future.result()


def faster(prepare: Callable[[int], T], steps: range) -> Iterator[tuple[int, T]]:
    """The same, in the way that proves faster on the first steps; fewer than `WORTH` are made in turn."""
    if len(steps) < WORTH:
        yield from in_turn(prepare, steps)
        return
    turns, besides = list[float](), list[float]()
    first, last = 1 + TRIED, 1 + TRIED + AHEAD + TRIED + AHEAD
    yield from _timed(in_turn(prepare, steps[:first]), turns)
    yield from _timed(ahead(prepare, steps[first:last]), besides)
    # the first step also warms up; at the start of those on threads more is prepared than used, at their end less
    is_faster = median(besides[AHEAD:-AHEAD]) < median(turns[1:])
    yield from (ahead if is_faster else in_turn)(prepare, steps[last:])


def _timed(steps: Generator[T], seconds: list[float]) -> Iterator[T]:
    """Notes how long each took, from when it was asked for until the next one is."""
    with closing(steps):
        began = time.perf_counter()
        for step in steps:
            yield step
            seconds.append(time.perf_counter() - began)
            began = time.perf_counter()
