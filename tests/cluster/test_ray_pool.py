"""The pool of Ray actors, held to the contract of all pools, and what only it does: copies, order, flow, size, room."""

import functools
import sys
import threading
import time
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from cluster.pool import RayPool, ray_pool
from cluster.session import session
from core.errors import ConfigError, ResourceError, WorkerError
from core.pool import Done, Shared
from tests.pool_contract import PoolContract, results
from tests.pool_work import DEADLINE_S, lock_of, meet, process, square, surroundings

# Ray warns about its own deprecated settings in this process, which starts it
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    with session(None, 2):
        yield


@pytest.fixture(scope="module")
def kept(ray_session: None) -> Iterator[list[RayPool]]:
    """One pool for many tests: that each finds it fit for use is part of what they test."""
    pools: list[RayPool] = []
    yield pools
    for pool in pools:
        pool.close()


@pytest.fixture
def pool(kept: list[RayPool]) -> RayPool:
    """Two workers on half a processor each, so that other pools have room beside them."""
    if not kept or not kept[-1].is_open:
        kept.append(RayPool(2, cpus_per_worker=0.5, max_result_bytes=10_000_000))
    return kept[-1]


class TestRayPool(PoolContract):
    """The contract."""


def mapping_of(shared: Shared[dict[str, Any]], item: int) -> tuple[list[str], bool]:
    """The lines of /proc on the memory of the shared tensor and array, and whether the array can be written to."""
    value = shared.get()
    addresses = value["tensor"].data_ptr(), value["array"].ctypes.data
    files = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(end, 16) for end in line.split()[0].split("-"))
        files += [line for address in addresses if first <= address < last]
    return files, value["array"].flags.writeable


def read_strictly(shared: Shared[dict[str, Any]], item: int) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return float(shared.get()["tensor"].sum())


def big(size: int) -> torch.Tensor:
    return torch.ones(size, dtype=torch.uint8)


class Counting(dict[int, int]):
    """Items that know how often one was taken out."""

    taken = 0

    def __getitem__(self, key: int) -> int:
        self.taken += 1
        return super().__getitem__(key)


def test_no_worker_copies_a_shared_tensor(pool: RayPool) -> None:
    shared = pool.share({"tensor": torch.ones(1_000_000), "array": np.ones(1_000_000)})
    read = functools.partial(mapping_of, shared)
    for files, writeable in results(pool, read, {i: i for i in range(8)}).values():
        assert len(files) == 2 and all("plasma" in file for file in files)  # Ray's store, not a worker's own memory
        assert not writeable


def test_a_shared_tensor_is_read_without_a_warning(ray_session: None) -> None:
    """In a process of its own, since torch says only once that an array is read-only."""
    with RayPool(1, cpus_per_worker=0.5) as fresh:
        shared = fresh.share({"tensor": torch.ones(10)})
        assert results(fresh, functools.partial(read_strictly, shared), {1: 1}) == {1: 10.0}


def test_a_share_that_goes_out_of_scope_is_freed_here_and_in_the_workers(pool: RayPool) -> None:
    shared = pool.share({"tensor": torch.ones(1_000_000), "array": np.ones(1_000_000)})
    list(pool.run(functools.partial(mapping_of, shared), {1: 1}))
    assert len(pool.shares) == 1
    del shared
    assert not pool.shares
    list(pool.run(square, {i: i for i in range(20)}))
    assert not any(member.holds for member in pool.members)


def test_only_a_few_items_a_worker_are_under_way_at_a_time(pool: RayPool) -> None:
    items = Counting({i: i for i in range(5000)})
    running = pool.run(square, items)
    items.taken = 0  # the check that each can be sent
    for number, done in enumerate(running, 1):
        assert done.result == done.key**2
        assert items.taken - number <= 2 * 4 + 2 * 4  # under way, and come back together but not yet taken
    assert items.taken == 5000


@pytest.mark.parametrize("count, most", [(20, 4), (3, 3)])
def test_a_long_item_has_another_waiting_behind_it_only_while_there_are_plenty(
    pool: RayPool, count: int, most: int
) -> None:
    items = Counting({i: i for i in range(count)})
    for key in items:
        pool.times.learn(key, 10.0)
        pool.times.learn(key, 10.0)
    running = pool.run(square, items)
    items.taken = 0
    next(running)
    assert items.taken <= most
    running.close()


def test_an_item_behind_one_that_takes_unexpectedly_long_runs_elsewhere(ray_session: None, tmp_path: Path) -> None:
    files = [tmp_path / str(i) for i in range(40)]
    items = {0: (files[0], files[1:])} | {i: (files[i], []) for i in range(1, 40)}
    with RayPool(2, cpus_per_worker=0.5) as misled:
        for key in items:
            misled.times.learn(key, 1e-4)
        assert len(results(misled, meet, items, cost={0: 1.0})) == 40
    assert {len(file.read_text()) for file in files} <= {1, 2}  # the first worker may still have come to it


def test_the_longest_item_goes_first_by_cost_and_then_by_learned_time(ray_session: None) -> None:
    with RayPool(1, cpus_per_worker=0.5) as single:
        keys = [done.key for done in single.run(square, {"a": 1, "b": 2, "c": 3}, cost={"b": 9, "c": 1, "a": 5})]
        assert keys == ["b", "a", "c"]
        for key, seconds in {"a": 1.0, "b": 2.0, "c": 50.0}.items():
            single.times.learn(key, seconds)
        assert [done.key for done in single.run(square, {"a": 1, "b": 2, "c": 3})] == ["c", "b", "a"]


def test_times_are_learned_from_what_runs(pool: RayPool) -> None:
    list(pool.run(square, {"learned": 1}))
    assert 0 < (pool.times.of("learned") or 0) < 1


def test_a_worker_that_needs_no_torch_starts_without_it(ray_session: None) -> None:
    assert "torch" in sys.modules
    with RayPool(1, cpus_per_worker=0.5) as single:
        assert results(single, surroundings, {1: 1}) == {1: (False, "1", "")}


def test_a_worker_that_joins_during_a_run_takes_part_in_it(ray_session: None, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    with RayPool(1, cpus_per_worker=0.5) as growing:
        running = growing.run(meet, {"warm": (first, []), 1: (first, [second]), 2: (second, [first])}, cost={"warm": 9})
        alone = next(running).result
        growing.resize(2)
        assert growing.workers == 2
        pids = {done.result for done in running}
        assert len(pids) == 2 and alone in pids


def test_a_worker_that_leaves_during_a_run_finishes_its_item_first(ray_session: None, tmp_path: Path) -> None:
    files, go = [tmp_path / "first", tmp_path / "second"], tmp_path / "go"
    found: list[Done[int, int]] = []
    with RayPool(2, cpus_per_worker=0.5) as shrinking:
        items = {1: (files[0], [go]), 2: (files[1], [go])}
        running = threading.Thread(target=lambda: found.extend(shrinking.run(meet, items)))
        running.start()
        meet((tmp_path / "here", files))
        shrinking.resize(1)
        deadline = time.monotonic() + DEADLINE_S
        while not any(member.is_leaving for member in shrinking.members) and time.monotonic() < deadline:
            threading.Event().wait(0.01)
        go.touch()
        running.join(DEADLINE_S)
        assert sorted(done.key for done in found) == [1, 2]
        assert [file.read_text() for file in files] == ["x", "x"]
        (left,) = {done.result for done in found} - set(results(shrinking, process, {1: 1}).values())
        assert shrinking.workers == len(shrinking.members) == 1
        assert psutil.wait_procs([psutil.Process(left)] if psutil.pid_exists(left) else [], timeout=DEADLINE_S)[1] == []


def test_a_pool_is_resized_between_runs(ray_session: None) -> None:
    with RayPool(1, cpus_per_worker=0.5) as changing:
        changing.resize(2)
        assert results(changing, square, {i: i for i in range(10)}) == {i: i * i for i in range(10)}
        changing.resize(1)
        assert len(changing.members) == 1
        assert results(changing, square, {1: 1}) == {1: 1}
        with pytest.raises(ConfigError, match="at least one, not 0"):
            changing.resize(0)


def test_a_run_goes_on_with_the_workers_that_the_cluster_has_room_for(ray_session: None) -> None:
    with RayPool(9, cpus_per_worker=0.5) as crowded:
        assert results(crowded, square, {i: i for i in range(10)}) == {i: i * i for i in range(10)}
        crowded.resize(1)
        assert results(crowded, square, {1: 3}) == {1: 9}


def test_a_pool_without_a_free_place_says_so(pool: RayPool) -> None:
    assert results(pool, square, {1: 1}) == {1: 1}  # it is there, and holds one of the two processors
    with (
        RayPool(1, cpus_per_worker=2, start_timeout_s=0.5) as waiting,
        pytest.raises(ResourceError, match=r"none could start within 0\.5 s; the cluster has 1 CPUs"),
    ):
        list(waiting.run(square, {1: 1}))


@pytest.mark.parametrize(
    "needs, said",
    [
        ({"cpus_per_worker": 999.0}, r"each needs 999 CPU and .* has over 2; lower cpus_per_worker"),
        ({"gpus_per_worker": 7.0}, r"each needs 7 GPU .* lower gpus_per_worker"),
        ({"resources": {"tpu": 1.0}}, r"each needs 1 tpu .* has over 0; lower resources\.tpu"),
    ],
)
def test_a_worker_that_no_node_could_hold_is_refused(ray_session: None, needs: dict[str, Any], said: str) -> None:
    with pytest.raises(ResourceError, match=said):
        RayPool(1, **needs)


@pytest.mark.parametrize("needs", [{"cpus_per_worker": -1.0}, {"gpus_per_worker": 1.5}, {"resources": {"tpu": -1.0}}])
def test_a_worker_that_cannot_be_is_refused(ray_session: None, needs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="give a share of one or a whole number"):
        RayPool(1, **needs)


def test_workers_that_leave_while_they_start_are_no_failure(ray_session: None) -> None:
    with RayPool(6, cpus_per_worker=0.5) as shrinking:
        running = shrinking.run(square, {i: i for i in range(200)})
        next(running)
        shrinking.resize(1)
        assert len(list(running)) == 199
        assert len(shrinking.members) == 1


def test_less_than_one_worker_is_refused(ray_session: None) -> None:
    with pytest.raises(ConfigError, match="workers: there must be at least one, not 0"):
        RayPool(0)
    with pytest.raises(ConfigError, match="workers: there must be at least one, not -1"), ray_pool(-1):
        pass


def test_a_function_that_cannot_be_sent_is_refused_before_anything_runs(pool: RayPool) -> None:
    lock = threading.Lock()
    with pytest.raises(ConfigError, match=r"run: the function cannot be sent to a worker .*lock.*top level") as caught:
        pool.run(lambda item: lock, {1: 1})
    assert "\n" not in str(caught.value)


def test_an_item_that_cannot_be_sent_is_named_before_anything_runs(pool: RayPool, tmp_path: Path) -> None:
    items: dict[int, Any] = {i: tmp_path / f"{i}" for i in range(600)}
    items[500] = threading.Lock()
    with pytest.raises(ConfigError, match=r"run: item 500 cannot be sent to a worker .*lock") as caught:
        pool.run(Path.touch, items)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_value_that_cannot_be_sent_is_not_shared(pool: RayPool) -> None:
    with pytest.raises(ConfigError, match=r"share: the value cannot be sent to a worker .*lock"):
        pool.share({"lock": threading.Lock()})


def test_a_result_that_cannot_be_sent_names_its_item(pool: RayPool) -> None:
    with pytest.raises(
        WorkerError, match=r"item 3 or its result cannot be sent .* worker .*: TypeError.*lock"
    ) as caught:
        list(pool.run(lock_of, {3: 3}))
    assert "\n" not in str(caught.value)
    assert results(pool, lock_of, {1: 1, 2: 2}) == {1: 1, 2: 2}


def test_a_result_that_is_too_large_names_its_item_and_its_size(pool: RayPool) -> None:
    assert torch.equal(results(pool, big, {1: 9_000_000})[1], big(9_000_000))
    with pytest.raises(
        WorkerError, match=r"item 2 gave a result of 11,000,000 bytes on .* max_result_bytes=10,000,000"
    ):
        list(pool.run(big, {2: 11_000_000}))


def test_a_result_may_be_written_to(pool: RayPool) -> None:
    result = results(pool, big, {1: 1_000_000})[1]
    result += 1
    assert int(result.sum()) == 2_000_000


def test_a_function_that_no_worker_can_load_says_why(pool: RayPool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("only_here")
    module.__dict__["work"] = work = types.FunctionType(square.__code__, module.__dict__, "work")
    work.__module__, work.__qualname__ = "only_here", "work"  # so it travels as its name, as a module's function does
    monkeypatch.setitem(sys.modules, "only_here", module)
    with pytest.raises(WorkerError, match=r"worker \d+ cannot load the function: .*No module named 'only_here'"):
        list(pool.run(work, {1: 1}))
    assert results(pool, square, {1: 1}) == {1: 1}


def test_a_result_has_the_size_of_what_lies_in_it() -> None:
    from cluster.pool_worker import bytes_of

    tree = {"a": [torch.ones(3), (np.ones(2), "four")], "b": b"12", "c": 3, "d": None}
    assert bytes_of(tree) == 12 + 16 + 4 + 2
