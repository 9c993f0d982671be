"""The pool that is this process, held to the contract of all pools; learned times and the order they give."""

import pytest

from core.pool import ItemTimes, LocalPool
from tests.pool_contract import PoolContract


class TestLocalPool(PoolContract):
    @pytest.fixture
    def pool(self) -> LocalPool:
        return LocalPool()

    def test_an_item_runs_only_when_its_result_is_asked_for(self, pool: LocalPool) -> None:
        ran: list[int] = []
        running = pool.run(ran.append, {i: i for i in range(3)})
        assert ran == []
        next(running)
        assert ran == [0]

    def test_the_function_s_own_exception_is_the_cause(self, pool: LocalPool) -> None:
        error = KeyError("x")

        def fail(item: int) -> None:
            raise error

        with pytest.raises(ValueError, match="KeyError") as caught:
            list(pool.run(fail, {1: 1}))
        assert caught.value.__cause__ is error


@pytest.fixture
def times() -> ItemTimes:
    return ItemTimes()


def test_items_keep_their_order_until_something_is_known(times: ItemTimes) -> None:
    assert times.longest_first([3, 1, 2], {}) == [3, 1, 2]


def test_learned_times_put_the_longest_first(times: ItemTimes) -> None:
    for key, seconds in {"a": 1.0, "b": 3.0, "c": 2.0}.items():
        times.learn(key, seconds)
    assert times.longest_first(["a", "b", "c"], {}) == ["b", "c", "a"]


def test_an_unknown_item_counts_as_the_mean(times: ItemTimes) -> None:
    times.learn("short", 1.0)
    times.learn("long", 4.0)
    assert times.longest_first(["short", "new", "long"], {}) == ["long", "new", "short"]


def test_a_cost_orders_what_has_never_run(times: ItemTimes) -> None:
    assert times.longest_first([1, 2, 3], {1: 10, 2: 300, 3: 20}) == [2, 3, 1]


def test_a_learned_time_counts_more_than_a_cost_and_gives_its_unit(times: ItemTimes) -> None:
    times.learn(1, 5.0)  # said to cost 50, so ten to the second
    times.learn(2, 1.0)
    assert times.longest_first([2, 1, 3], {1: 50, 3: 20}) == [1, 3, 2]
    assert times.longest_first([2, 1, 3], {1: 50, 3: 60}) == [3, 1, 2]


def test_a_cost_of_nothing_for_everything_is_no_cost(times: ItemTimes) -> None:
    times.learn(1, 1.0)
    assert times.longest_first([1, 2], {1: 0, 2: 0}) == [1, 2]


def test_a_time_moves_toward_what_was_seen_last(times: ItemTimes) -> None:
    times.learn("a", 4.0)
    times.learn("a", 2.0)
    assert times.of("a") == 3.0
    assert times.of("b") is None
