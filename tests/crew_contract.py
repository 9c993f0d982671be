"""What every pool of processes must do beside the contract of all pools: order, flow, size, what is shared and what is
sent. Such a pool inherits the class and says how it is made, and how one sees that memory is shared.
"""

import contextlib
import functools
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from core.errors import ConfigError, WorkerError
from core.pool import Done, Shared
from core.pool.crew import Crew
from tests.pool_contract import PoolContract, results
from tests.pool_work import DEADLINE_S, lock_of, meet, process, square, surroundings

Make = Callable[..., Crew]


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


def misaligned(item: dict[str, Any]) -> dict[str, Any]:
    """How far from a multiple of its numbers' size each tensor and array begins, and all of them back again."""
    return {"here": offsets(item), "back": item}


def offsets(tree: dict[str, Any]) -> dict[str, int]:
    starts = {name: v.data_ptr() if isinstance(v, torch.Tensor) else v.ctypes.data for name, v in tree.items()}
    return {name: start % tree[name].itemsize for name, start in starts.items()}


def big(size: int) -> torch.Tensor:
    return torch.ones(size, dtype=torch.uint8)


class Counting(dict[int, int]):
    """Items that know how often one was taken out."""

    taken = 0

    def __getitem__(self, key: int) -> int:
        self.taken += 1
        return super().__getitem__(key)


class CrewContract(PoolContract):
    """Inherit it with a fixture `make` of a class's or a module's scope: a pool of so many workers, half a processor
    each, so that other pools have room beside them."""

    @staticmethod
    def home(pool: Any) -> str:
        """What /proc calls the memory that the shared values of a pool lie in."""
        raise NotImplementedError

    @staticmethod
    def holds(pool: Any) -> bool:
        """Whether a worker of it still has a shared value."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def kept(cls) -> Iterator[list[Crew]]:
        """One pool for many tests: that each finds it fit for use is part of what they test."""
        with contextlib.ExitStack() as stack:
            pools: list[Crew] = []
            yield pools
            for pool in pools:
                stack.enter_context(pool)

    @pytest.fixture
    def pool(self, kept: list[Crew], make: Make) -> Crew:
        if not kept or not kept[-1].is_open:
            kept.append(make(2, max_result_bytes=10_000_000))
        return kept[-1]

    # --- what is shared --------------------------------------------------------------------------------------------

    def test_no_worker_copies_a_shared_tensor(self, pool: Crew) -> None:
        shared = pool.share({"tensor": torch.ones(1_000_000), "array": np.ones(1_000_000)})
        read = functools.partial(mapping_of, shared)
        for files, writeable in results(pool, read, {i: i for i in range(8)}).values():
            assert len(files) == 2 and all(self.home(pool) in file for file in files)
            assert not writeable

    def test_a_shared_tensor_is_read_without_a_warning(self, make: Make) -> None:
        """In a process of its own, since torch says only once that an array is read-only."""
        with make(1) as fresh:
            shared = fresh.share({"tensor": torch.ones(10)})
            assert results(fresh, functools.partial(read_strictly, shared), {1: 1}) == {1: 10.0}

    def test_a_share_that_goes_out_of_scope_is_freed_here_and_in_the_workers(self, pool: Crew, tmp_path: Path) -> None:
        shared = pool.share({"tensor": torch.ones(1_000_000), "array": np.ones(1_000_000)})
        list(pool.run(functools.partial(mapping_of, shared), {i: i for i in range(20)}))
        assert len(pool.shares) == 1 and self.holds(pool)
        del shared
        assert not pool.shares
        first, second = tmp_path / "first", tmp_path / "second"
        assert len(set(results(pool, meet, {1: (first, [second]), 2: (second, [first])}).values())) == 2
        assert not self.holds(pool)

    def test_a_share_that_only_the_function_holds_lives_as_long_as_the_run(self, pool: Crew) -> None:
        running = pool.run(functools.partial(read_strictly, pool.share({"tensor": torch.ones(3)})), {1: 1, 2: 2})
        assert {done.key: done.result for done in running} == {1: 3.0, 2: 3.0}
        assert not pool.shares

    # --- order and flow --------------------------------------------------------------------------------------------

    def test_only_a_few_items_a_worker_are_under_way_at_a_time(self, pool: Crew) -> None:
        items = Counting({i: i for i in range(5000)})
        running = pool.run(square, items)
        items.taken = 0  # the check that each can be sent
        for number, done in enumerate(running, 1):
            assert done.result == done.key**2
            assert items.taken - number <= 2 * 4 + 2 * 4  # under way, and come back together but not yet taken
        assert items.taken == 5000

    def test_no_item_waits_behind_a_long_one(self, pool: Crew) -> None:
        items = Counting({i: i for i in range(20)})
        for key in items:
            pool.times.learn(key, 10.0)
            pool.times.learn(key, 10.0)
        running = pool.run(square, items)
        items.taken = 0
        next(running)
        assert items.taken <= 2
        running.close()

    @pytest.mark.parametrize("slow, count", [(0, 8), (20, 40)])
    def test_each_item_executes_once_where_an_unknown_one_is_slow(
        self, pool: Crew, tmp_path: Path, slow: int, count: int
    ) -> None:
        files = [tmp_path / str(i) for i in range(count)]
        items = {file.name + tmp_path.name: (file, files[i + 1 :] if i == slow else []) for i, file in enumerate(files)}
        assert len(results(pool, meet, items)) == count
        assert [file.read_text() for file in files] == ["x"] * count

    def test_an_item_behind_one_that_takes_longer_than_before_runs_elsewhere(self, make: Make, tmp_path: Path) -> None:
        files = [tmp_path / str(i) for i in range(40)]
        items = {0: (files[0], files[1:])} | {i: (files[i], []) for i in range(1, 40)}
        with make(2) as misled:
            for key in items:
                misled.times.learn(key, 1e-4)
            assert len(results(misled, meet, items, cost={0: 1.0})) == 40
        assert {len(file.read_text()) for file in files} <= {1, 2}  # the first worker may still have come to it

    def test_the_longest_item_goes_first_by_cost_and_then_by_learned_time(self, make: Make) -> None:
        with make(1) as single:
            keys = [done.key for done in single.run(square, {"a": 1, "b": 2, "c": 3}, cost={"b": 9, "c": 1, "a": 5})]
            assert keys == ["b", "a", "c"]
            for key, seconds in {"a": 1.0, "b": 2.0, "c": 50.0}.items():
                single.times.learn(key, seconds)
            assert [done.key for done in single.run(square, {"a": 1, "b": 2, "c": 3})] == ["c", "b", "a"]

    def test_times_are_learned_from_what_runs(self, pool: Crew) -> None:
        list(pool.run(square, {"learned": 1}))
        assert 0 < (pool.times.of("learned") or 0) < 1

    # --- who comes and goes ----------------------------------------------------------------------------------------

    def test_a_worker_that_needs_no_torch_starts_without_it(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "torch" in sys.modules
        monkeypatch.setenv("OMP_NUM_THREADS", "7")
        with make(1) as single:
            assert results(single, surroundings, {1: 1}) == {1: (False, "1", "")}

    def test_a_worker_that_joins_during_a_run_takes_part_in_it(self, make: Make, tmp_path: Path) -> None:
        first, second = tmp_path / "first", tmp_path / "second"
        items = {"warm": (first, []), 1: (first, [second]), 2: (second, [first])}
        with make(1) as growing:
            running = growing.run(meet, items, cost={"warm": 9})
            alone = next(running).result
            growing.resize(2)
            assert growing.workers == 2
            pids = {done.result for done in running}
            assert len(pids) == 2 and alone in pids

    def test_a_worker_that_leaves_during_a_run_finishes_its_item_first(self, make: Make, tmp_path: Path) -> None:
        files, go = [tmp_path / str(i) for i in range(20)], tmp_path / "go"
        found: list[Done[int, int]] = []
        with make(2) as shrinking:
            items = {i: (file, [go]) for i, file in enumerate(files)}
            running = threading.Thread(target=lambda: found.extend(shrinking.run(meet, items)))
            running.start()
            wait_until(lambda: sum(file.exists() for file in files) == 2)
            shrinking.resize(1)
            wait_until(lambda: any(member.is_leaving for member in shrinking.members))
            go.touch()
            running.join(DEADLINE_S)
            assert sorted(done.key for done in found) == list(range(20))
            assert [file.read_text() for file in files] == ["x"] * 20
            (left,) = {done.result for done in found} - set(results(shrinking, process, {1: 1}).values())
            assert sum(done.result == left for done in found) == 1  # the one that it had
            assert shrinking.workers == len(shrinking.members) == 1
            assert psutil.wait_procs(alive([left]), timeout=DEADLINE_S)[1] == []

    def test_a_pool_is_resized_between_runs(self, make: Make) -> None:
        with make(1) as changing:
            changing.resize(2)
            assert results(changing, square, {i: i for i in range(10)}) == {i: i * i for i in range(10)}
            changing.resize(1)
            assert len(changing.members) == 1
            assert results(changing, square, {1: 1}) == {1: 1}
            with pytest.raises(ConfigError, match="at least one, not 0"):
                changing.resize(0)

    def test_workers_that_leave_while_they_start_are_no_failure(self, make: Make) -> None:
        with make(6, cpus_per_worker=0.1) as shrinking:
            running = shrinking.run(square, {i: i for i in range(200)})
            next(running)
            shrinking.resize(1)
            assert len(list(running)) == 199
            assert len(shrinking.members) == 1

    @pytest.mark.parametrize("workers", [0, -1])
    def test_less_than_one_worker_is_refused(self, make: Make, workers: int) -> None:
        with pytest.raises(ConfigError, match=f"workers: there must be at least one, not {workers}"):
            make(workers)

    @pytest.mark.parametrize("needs", [{"cpus_per_worker": -1.0}, {"gpus_per_worker": 1.5}])
    def test_a_worker_that_cannot_be_is_refused(self, make: Make, needs: dict[str, float]) -> None:
        with pytest.raises(ConfigError, match="give a share of one or a whole number"):
            make(1, **needs)

    # --- what is sent ----------------------------------------------------------------------------------------------

    def test_a_function_that_cannot_be_sent_is_refused_before_anything_runs(self, pool: Crew) -> None:
        lock = threading.Lock()
        said = r"run: the function cannot be sent to a worker .*lock.*top level"
        with pytest.raises(ConfigError, match=said) as caught:
            pool.run(lambda item: lock, {1: 1})
        assert "\n" not in str(caught.value)

    def test_an_item_that_cannot_be_sent_is_named_before_anything_runs(self, pool: Crew, tmp_path: Path) -> None:
        items: dict[int, Any] = {i: tmp_path / f"{i}" for i in range(600)}
        items[500] = threading.Lock()
        with pytest.raises(ConfigError, match=r"run: item 500 cannot be sent to a worker .*lock") as caught:
            pool.run(Path.touch, items)
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []

    def test_a_value_that_cannot_be_sent_is_not_shared(self, pool: Crew) -> None:
        with pytest.raises(ConfigError, match=r"share: the value cannot be sent to a worker .*lock"):
            pool.share({"lock": threading.Lock()})

    def test_a_result_that_cannot_be_sent_names_its_item(self, pool: Crew) -> None:
        said = r"item 3 or its result cannot be sent .* worker .*: TypeError.*lock"
        with pytest.raises(WorkerError, match=said) as caught:
            list(pool.run(lock_of, {3: 3}))
        assert "\n" not in str(caught.value)
        assert results(pool, lock_of, {1: 1, 2: 2}) == {1: 1, 2: 2}

    def test_a_result_that_is_too_large_names_its_item_and_its_size(self, pool: Crew) -> None:
        assert torch.equal(results(pool, big, {1: 9_000_000})[1], big(9_000_000))
        said = r"item 2 gave a result of 11,000,000 bytes on .* max_result_bytes=10,000,000"
        with pytest.raises(WorkerError, match=said):
            list(pool.run(big, {2: 11_000_000}))

    def test_a_result_may_be_written_to(self, pool: Crew) -> None:
        for result in results(pool, big, {1: 10, 2: 1_000_000}).values():
            before = int(result.sum())
            result += 1
            assert int(result.sum()) == 2 * before

    def test_tensors_and_arrays_of_any_type_arrive_where_their_numbers_may_lie(self, pool: Crew) -> None:
        item = {"byte": torch.ones(3, dtype=torch.uint8), "double": torch.ones(5, dtype=torch.float64)}
        item |= {"array": np.ones(7), "half": np.ones(1, dtype=np.float16), "long": np.arange(2)}
        result = results(pool, misaligned, {1: item})[1]
        assert set(result["here"].values()) == set(offsets(result["back"]).values()) == {0}

    def test_a_function_that_no_worker_can_load_says_why(self, pool: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
        module = types.ModuleType("only_here")
        module.__dict__["work"] = work = types.FunctionType(square.__code__, module.__dict__, "work")
        work.__module__, work.__qualname__ = "only_here", "work"  # so it travels as its name, as a module's does
        monkeypatch.setitem(sys.modules, "only_here", module)
        with pytest.raises(WorkerError, match=r"worker \d+ cannot load the function: .*No module named 'only_here'"):
            list(pool.run(work, {1: 1}))
        assert results(pool, square, {1: 1}) == {1: 1}


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_so() and time.monotonic() < deadline:
        threading.Event().wait(0.01)


def alive(pids: Iterable[int]) -> list[psutil.Process]:
    """Those of the processes that have not ended yet, so that their end can be waited for."""
    return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
