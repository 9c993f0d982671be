"""What every `WorkerPool` must do. An implementation inherits the class and gives a fixture `pool`, open and unused."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from core.errors import ConfigError, DataError, WorkerError
from core.pool import Shared, WorkerPool
from tests.pool_work import divide, leave, refuse, square


def add_to(shared: Shared[dict[str, Any]], x: int) -> float:
    return float(shared.get()["w"].sum()) + x


def described(shared: Shared[Any]) -> dict[str, Any]:
    return {name: (type(value).__name__, str(value.dtype), tuple(value.shape)) for name, value in shared.get().items()}


def scaled(item: dict[str, Any]) -> dict[str, Any]:
    return {"w": item["shared"].get()["w"] * item["by"], "half": torch.full((3,), item["by"], dtype=torch.bfloat16)}


@dataclasses.dataclass
class Tree:
    """A value whose tensors lie deeper than one level."""

    layers: list[dict[str, torch.Tensor]]
    bounds: tuple[np.ndarray, int]


def total(shared: Shared[Tree], x: int) -> float:
    tree = shared.get()
    return float(sum(layer["w"].sum() for layer in tree.layers) + tree.bounds[0].sum() + tree.bounds[1] + x)


def results(pool: WorkerPool, fn: Any, items: Mapping[Any, Any], **options: Any) -> dict[Any, Any]:
    done = list(pool.run(fn, items, **options))
    assert len({d.key for d in done}) == len(done)
    return {d.key: d.result for d in done}


class PoolContract:
    """Inherit it as `TestMyPool`."""

    def test_every_item_gives_its_result_once_under_its_key(self, pool: WorkerPool) -> None:
        items = {f"client-{i}": i for i in range(40)}
        assert results(pool, square, items) == {key: i * i for key, i in items.items()}

    def test_a_finished_item_says_its_time_and_its_worker(self, pool: WorkerPool) -> None:
        (done,) = pool.run(square, {7: 3})
        assert (done.key, done.result) == (7, 9)
        assert done.seconds >= 0 and done.worker >= 0

    def test_no_items_give_no_results(self, pool: WorkerPool) -> None:
        assert list(pool.run(square, {})) == []

    def test_costs_and_learned_times_do_not_change_results(self, pool: WorkerPool) -> None:
        items = {i: i for i in range(20)}
        expected = {i: i * i for i in items}
        assert results(pool, square, items, cost={3: 5.0, 19: 0.0}) == expected
        assert results(pool, square, items, cost={4: 1e6}) == expected

    def test_an_exception_names_the_item_the_worker_and_the_line(self, pool: WorkerPool) -> None:
        with pytest.raises(WorkerError) as caught:
            list(pool.run(divide, {"a": 0}))
        said = str(caught.value)
        assert said.startswith("item a failed on worker ") and said.endswith(": ZeroDivisionError: division by zero")
        assert "\n" not in said
        assert any("return 1 / x" in note for note in caught.value.__notes__)

    def test_an_error_that_the_user_can_mend_keeps_its_class_and_exit_code(self, pool: WorkerPool) -> None:
        with pytest.raises(DataError, match=r"item 1 failed on worker \d+: DataError: data\.path: x is not") as caught:
            list(pool.run(refuse, {1: "x"}))
        assert caught.value.exit_code == DataError.exit_code

    def test_a_function_that_exits_fails_its_item_and_no_more(self, pool: WorkerPool) -> None:
        with pytest.raises(WorkerError, match=r"item 1 failed on worker \d+: SystemExit: 3"):
            list(pool.run(leave, {1: 3}))
        assert results(pool, square, {1: 2}) == {1: 4}

    def test_the_pool_runs_again_after_an_exception(self, pool: WorkerPool) -> None:
        with pytest.raises(WorkerError, match="ZeroDivisionError"):
            list(pool.run(divide, {i: i % 7 for i in range(30)}))
        assert results(pool, square, {1: 1, 2: 2}) == {1: 1, 2: 4}

    def test_the_pool_runs_again_after_an_early_break(self, pool: WorkerPool) -> None:
        for done in pool.run(square, {i: i for i in range(1000)}):
            first = done
            break
        assert first.result == first.key**2
        assert results(pool, divide, {1: 1, 2: 2}) == {1: 1.0, 2: 0.5}

    def test_two_runs_at_once_are_refused(self, pool: WorkerPool) -> None:
        running = pool.run(square, {1: 1, 2: 2})
        next(running)
        with pytest.raises(ConfigError, match="another run of this pool is going on"):
            next(pool.run(square, {3: 3}))
        assert len(list(running)) == 1

    def test_a_shared_value_is_read_inside_a_bound_function_and_inside_items(self, pool: WorkerPool) -> None:
        shared = pool.share({"w": torch.arange(4.0)})
        assert results(pool, functools.partial(add_to, shared), {1: 1, 2: 2}) == {1: 7.0, 2: 8.0}
        items = {by: {"shared": shared, "by": by} for by in (2, 3)}
        for by, result in results(pool, scaled, items).items():
            assert torch.equal(result["w"], torch.arange(4.0) * by)
            assert torch.equal(result["half"], torch.full((3,), by, dtype=torch.bfloat16))
        assert torch.equal(shared.get()["w"], torch.arange(4.0))

    def test_a_shared_tree_arrives_with_its_types_and_shapes(self, pool: WorkerPool) -> None:
        value = {
            "float": torch.ones(2, 3),
            "half": torch.ones(5, dtype=torch.bfloat16),
            "scalar": torch.tensor(3),
            "empty": torch.empty(0, 4),
            "bool": torch.tensor([True, False]),
            "turned": torch.arange(6.0).reshape(2, 3).T,
            "complex": torch.ones(2, dtype=torch.complex64).conj(),
            "sparse": torch.eye(3).to_sparse(),
            "parameter": torch.nn.Parameter(torch.ones(2)),
            "array": np.ones((2, 2), dtype=np.float16),
        }
        shared = pool.share(value)
        (done,) = pool.run(described, {1: shared})
        assert done.result == {n: (type(v).__name__, str(v.dtype), tuple(v.shape)) for n, v in value.items()}
        back = shared.get()
        assert torch.equal(back["turned"], value["turned"])
        assert torch.equal(back["sparse"].to_dense(), torch.eye(3))

    def test_tensors_deep_in_a_shared_dataclass_are_read(self, pool: WorkerPool) -> None:
        shared = pool.share(Tree([{"w": torch.ones(3)}, {"w": torch.ones(2)}], (np.ones(4), 10)))
        assert results(pool, functools.partial(total, shared), {1: 100}) == {1: 119.0}

    def test_a_released_value_cannot_be_read_again(self, pool: WorkerPool) -> None:
        shared = pool.share({"w": torch.ones(2)})
        assert results(pool, functools.partial(add_to, shared), {1: 1}) == {1: 3.0}
        shared.release()
        shared.release()
        with pytest.raises(ConfigError, match="was released"):
            list(pool.run(functools.partial(add_to, shared), {1: 1}))
        with pytest.raises(ConfigError, match="was released"):
            shared.get()

    def test_a_closed_pool_refuses_work_and_closes_twice(self, pool: WorkerPool) -> None:
        with pool as same:
            assert same is pool
            assert pool.workers >= 1
        pool.close()
        for use in (lambda: list(pool.run(square, {1: 1})), lambda: pool.share(1)):
            with pytest.raises(ConfigError, match="pool: it is closed"):
                use()

    def test_a_run_ends_with_an_error_when_its_pool_is_closed(self, pool: WorkerPool) -> None:
        running = pool.run(square, {i: i for i in range(100)})
        next(running)
        pool.close()
        with pytest.raises(ConfigError, match="pool: it is closed"):
            list(running)
