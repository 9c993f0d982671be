"""Batches come in order, each once, however they are prepared; threads are bounded, end, and prove themselves."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from core.data import ahead as module
from core.data.ahead import AHEAD, TRIED, WORTH, ahead, faster, in_turn

WAYS = [in_turn, ahead, faster]
TRIAL = 1 + TRIED + AHEAD + TRIED + AHEAD  # the steps of both trials


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("batches")]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("count", [0, 1, AHEAD, TRIED + 1, WORTH - 1, WORTH, WORTH + 20])
def test_every_step_comes_once_and_in_order(way: Callable[..., Any], count: int) -> None:
    made: list[int] = []
    expected = [(step, -step) for step in range(7, 7 + count)]
    assert list(way(lambda step: made.append(step) or -step, range(7, 7 + count))) == expected
    assert sorted(made) == [step for step, _ in expected]
    assert not threads()


def test_preparing_ahead_is_bounded_and_ends_with_its_consumer() -> None:
    made: list[int] = []
    batches: Iterator[Any] = ahead(made.append, range(WORTH))
    next(batches)
    assert threads()
    batches.close()  # type: ignore[attr-defined]
    assert not threads()
    assert 1 <= len(made) <= 1 + AHEAD


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("at", [0, 3, TRIED + 2, TRIED + AHEAD + 3, TRIAL + 5])
def test_an_error_while_preparing_reaches_the_consumer_at_its_step(way: Callable[..., Any], at: int) -> None:
    def prepare(step: int) -> int:
        if step == at:
            raise ValueError(f"image {at} is broken")
        return step

    batches = way(prepare, range(WORTH))
    assert [next(batches)[0] for _ in range(at)] == list(range(at))
    with pytest.raises(ValueError, match=f"image {at} is broken"):
        next(batches)
    assert not threads()


@pytest.mark.parametrize("cost, beside, pays", [(1.0, 0.2, True), (0.2, 1.0, False)])
def test_threads_go_on_only_where_they_are_faster(
    cost: float, beside: float, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes 5 s, `cost` more if it waits for its batch, `beside` more if threads prepare batches meanwhile."""
    clock, where = [0.0], dict[int, str]()
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(module, "WORTH", TRIAL + 3)

    def prepare(step: int) -> None:
        where[step] = threading.current_thread().name

    for step, _ in faster(prepare, range(TRIAL + 3)):
        clock[0] += 5 + (beside if where[step].startswith("batches") else cost)
    assert not any(where[step].startswith("batches") for step in range(1 + TRIED))
    assert all(where[step].startswith("batches") for step in range(1 + TRIED, TRIAL))
    assert all(where[step].startswith("batches") == pays for step in range(TRIAL, TRIAL + 3))


def test_few_steps_start_no_thread() -> None:
    names = {name for _, name in faster(lambda step: threading.current_thread().name, range(WORTH - 1))}
    assert names == {threading.current_thread().name}


@pytest.mark.parametrize("at", [3, TRIED + 2, TRIED + AHEAD + 3, TRIAL - 2, TRIAL + 5])
def test_a_consumer_that_leaves_leaves_no_thread(at: int) -> None:
    batches = faster(lambda step: step, range(WORTH))
    for _ in range(at):
        next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not threads()
