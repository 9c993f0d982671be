"""The pool of this machine's processes, held to the contract of all pools of processes, and what only it does."""

import errno
import functools
import os
import re
import signal
import socket
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from core.errors import ResourceError, WorkerError
from core.pool import ProcessPool, Shared
from core.pool import processes as processes_module
from core.pool import wire as wire_module
from core.pool.outcome import Lost, bytes_of
from tests.crew_contract import CrewContract, Make, alive
from tests.pool_contract import results
from tests.pool_work import (
    DEADLINE_S,
    deaf,
    double,
    endless,
    endless_or_second,
    file_of,
    interrupt,
    is_imported,
    killed,
    killed_with,
    meet,
    process,
    square,
    surroundings,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def make() -> Make:
    return functools.partial(ProcessPool, cpus_per_worker=0.5)


def files_of(pool: ProcessPool) -> list[Path]:
    return [
        file
        for path in pool._folder.paths
        for file in Path(path).rglob("*")
        if file.is_file() and file.name not in (wire_module.LOCK, wire_module.BEGUN)
    ]


class TestProcessPool(CrewContract):
    @staticmethod
    def home(pool: ProcessPool) -> str:
        return pool._folder.paths[0]

    @staticmethod
    def holds(pool: ProcessPool) -> bool:
        maps = [Path(f"/proc/{member.hand.pid}/maps").read_text() for member in pool.members]
        return any(re.search(rf"{pool._folder.paths[0]}/[0-9a-f]{{32}}", text) for text in maps)  # the name of a share

    def test_items_and_results_of_many_megabytes_cross_on_their_way(self, pool: ProcessPool) -> None:
        items = {i: np.full(500_000, i, dtype=np.float64) for i in range(30)}
        for key in items:
            pool.times.learn(key, 1e-4)  # so that some are given ahead
        for done in pool.run(double, items):
            assert done.result.shape == (500_000,) and (done.result == 2 * done.key).all()

    @pytest.mark.parametrize("size", [10, 10_000])
    def test_an_array_that_comes_back_may_be_written_to(self, pool: ProcessPool, size: int) -> None:
        result = results(pool, double, {1: np.ones(size)})[1]
        result += 1
        assert (result == 3).all()

    def test_nothing_but_shared_values_stays_in_the_folder(self, pool: ProcessPool) -> None:
        shared = pool.share({"w": torch.ones(1000)})
        found = results(pool, double, {i: np.ones(10_000) for i in range(10)})
        assert len(found) == 10
        assert files_of(pool) == [Path(shared._name)]

    def test_what_one_worker_writes_into_a_shared_tensor_no_other_sees(self, pool: ProcessPool, tmp_path: Path) -> None:
        shared = pool.share({"w": torch.zeros(10_000)})
        files = [tmp_path / "first", tmp_path / "second"]
        items = {0: (files[0], [files[1]]), 1: (files[1], [files[0]])}
        done = results(pool, functools.partial(meet_and_add, shared), items)
        assert done == {0: 10_000.0, 1: 10_000.0}
        assert float(shared.get()["w"].sum()) == 0.0


def meet_and_add(shared: Shared[dict[str, torch.Tensor]], names: tuple[Path, list[Path]]) -> float:
    weights = shared.get()["w"]
    weights += 1
    meet(names)
    return float(weights.sum())


# --- what is refused ------------------------------------------------------------------------------------------------


def test_more_processors_than_the_machine_has_are_refused() -> None:
    there = os.cpu_count() or 1
    with pytest.raises(ResourceError, match=rf"ask for {there + 1} CPUs and this machine has {there}; ") as caught:
        ProcessPool(there + 1)
    assert "\n" not in str(caught.value)
    with ProcessPool(1) as pool, pytest.raises(ResourceError, match=f"ask for {there + 1} CPUs"):
        pool.resize(there + 1)


@pytest.mark.parametrize("workers, share, room", [(3, 1.0, 2), (2, 2.0, 3), (4, 0.7, 3), (5, 0.5, 2)])
def test_more_gpus_than_the_machine_has_are_refused(
    monkeypatch: pytest.MonkeyPatch, workers: int, share: float, room: int
) -> None:
    monkeypatch.setattr(processes_module, "_gpus", lambda: [str(i) for i in range(room)])
    with pytest.raises(
        ResourceError, match=rf"no room for {workers} with {share:g} GPU each, this machine has {room}; use"
    ):
        ProcessPool(workers, cpus_per_worker=0.1, gpus_per_worker=share)


# --- where a worker computes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "share, seen", [(1.0, ["4", "5", "7"]), (0.5, ["4", "4", "5"]), (0.7, ["4", "5", "7"]), (1 / 3, ["4", "4", "4"])]
)
def test_each_worker_sees_its_own_gpus(monkeypatch: pytest.MonkeyPatch, share: float, seen: list[str]) -> None:
    monkeypatch.setattr(processes_module, "_gpus", lambda: ["4", "5", "7"])
    with ProcessPool(3, cpus_per_worker=0.1, gpus_per_worker=share) as pool:
        assert gpus_by_process(pool, 3) == seen


def test_a_worker_that_replaces_a_dead_one_sees_the_same_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = [f"GPU-{i}-{'0' * 60}" for i in range(8)]  # as long as they may be
    monkeypatch.setattr(processes_module, "_gpus", lambda: names)
    with ProcessPool(2, cpus_per_worker=0.1, gpus_per_worker=4.0) as pool:
        before = gpus_by_process(pool, 2)
        assert before == [",".join(names[:4]), ",".join(names[4:])]
        first = pool.members[0].number
        assert results(pool, killed, {1: (tmp_path / "deaths", 1)}) == {1: 1}
        assert {member.number for member in pool.members} != {first, first + 1}
        assert gpus_by_process(pool, 2) == before


def gpus_by_process(pool: ProcessPool, count: int) -> list[str]:
    """What each of so many workers sees, sorted."""
    seen: dict[int, str] = {}
    while len(seen) < count:  # a worker that is up first may do all items of a run
        for done in pool.run(surroundings, {i: i for i in range(20)}):
            seen[done.worker] = str(done.result[2])
    return sorted(seen.values())


def test_what_is_preloaded_is_there_before_a_function_asks_for_it() -> None:
    with ProcessPool(1, preload=["colorsys", "no_such_module"]) as pool:
        assert results(pool, is_imported, {1: "colorsys", 2: "chunk"}) == {1: True, 2: False}


def test_modules_are_found_where_the_pool_was_told(tmp_path: Path) -> None:
    (tmp_path / "only_there.py").write_text("")
    with ProcessPool(1, path=[str(tmp_path)]) as pool:
        assert results(pool, file_of, {1: "only_there"}) == {1: str(tmp_path / "only_there.py")}


# --- what lies in memory --------------------------------------------------------------------------------------------


def test_what_does_not_fit_into_memory_lies_on_the_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    memory.mkdir()
    monkeypatch.setattr(wire_module, "MEMORY", str(memory))
    write = wire_module._write

    def full(file: str, parts: Any) -> None:
        if file.startswith(str(memory)):
            Path(file).write_bytes(b"as far as it went")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, parts)

    monkeypatch.setattr(wire_module, "_write", full)
    with ProcessPool(1) as pool:
        assert len(set(pool._folder.paths)) == 2
        shared = pool.share({"w": torch.ones(100_000)})
        assert [Path(shared._name)] == files_of(pool)
        assert not shared._name.startswith(str(memory))
        assert (results(pool, double, {1: np.ones(100_000)})[1] == 2).all()


def test_a_value_that_fits_nowhere_is_a_lack_of_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: str, parts: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with ProcessPool(1) as pool:
        monkeypatch.setattr(wire_module, "_write", full)
        with pytest.raises(ResourceError, match="share: the value does not fit into memory or on the disk") as caught:
            pool.share({"w": torch.ones(10)})
        assert "\n" not in str(caught.value)
        with pytest.raises(WorkerError, match=r"item 1 or its result cannot be sent .*No space left"):
            list(pool.run(double, {1: np.ones(100_000)}))


def test_a_worker_that_is_ended_leaves_no_files(tmp_path: Path) -> None:
    """Neither those that it had not read nor those that nobody has read of it."""
    with ProcessPool(1) as pool:
        started = tmp_path / "pid"
        items = {key: (started if key == 2 else None, np.ones(100_000)) for key in range(10)}
        for key in items:
            pool.times.learn(key, 1e-4)  # so that four are given at once
        running = pool.run(endless_or_second, items)
        next(running)
        meet((tmp_path / "here", [started]))
        assert len(files_of(pool)) >= 2
        pool.end(pool.members[0])
        assert files_of(pool) == []
        running.close()


def test_a_result_has_the_size_of_what_lies_in_it() -> None:
    tree = {"a": [torch.ones(3), (np.ones(2), "four")], "b": b"12", "c": 3, "d": None}
    assert bytes_of(tree) == 12 + 16 + 4 + 2


# --- how it ends ----------------------------------------------------------------------------------------------------


def test_nothing_is_left_of_a_pool_that_is_closed() -> None:
    with ProcessPool(2, cpus_per_worker=0.5) as pool:
        kept = pool.share({"w": torch.ones(1000)})
        list(pool.run(process, {i: i for i in range(10)}))
        there = [server := psutil.Process(pool._server.pid), *server.children()]
        assert len(there) == 3 and all(os.path.isdir(path) for path in pool._folder.paths)
    assert not any(os.path.exists(path) for path in [*pool._folder.paths, kept._name])
    assert not any(left.is_running() for left in there)


def test_a_pool_that_is_closed_while_it_starts_does_not_wait_for_that(tmp_path: Path) -> None:
    (tmp_path / "unending.py").write_text("import threading; threading.Event().wait()")
    with ProcessPool(1, preload=["unending"], path=[str(tmp_path)]) as pool:
        pass
    assert pool._server.returncode == -signal.SIGKILL
    assert not any(os.path.exists(path) for path in pool._folder.paths)


def test_a_worker_that_listens_to_nobody_is_ended_too(tmp_path: Path) -> None:
    with ProcessPool(2, cpus_per_worker=0.5) as pool:
        running = pool.run(deaf, {"deaf": tmp_path / "pid", 1: None, 2: None}, cost={"deaf": 9})
        next(running)
        meet((tmp_path / "here", [tmp_path / "pid"]))
        ended = alive([int((tmp_path / "pid").read_text())])
        running.close()
        assert psutil.wait_procs(ended, timeout=DEADLINE_S)[1] == []


def test_a_worker_does_not_mind_ctrl_c() -> None:
    with ProcessPool(1) as pool:
        (pid,) = results(pool, interrupt, {1: signal.SIGINT}).values()
        assert results(pool, process, {1: 1}) == {1: pid}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_server_ends_with_its_pool_and_not_by_a_signal_to_all(number: int) -> None:
    with ProcessPool(1) as pool:
        pool._server.send_signal(number)  # while it starts
        assert results(pool, square, {1: 2}) == {1: 4}
        pool._server.send_signal(number)
        pool.end(pool.members[0])
        assert results(pool, square, {1: 2}) == {1: 4}


def test_a_worker_can_be_ended_in_the_usual_way() -> None:
    with ProcessPool(1) as pool:
        (pid,) = results(pool, process, {1: 1}).values()
        ended = alive([pid])
        os.kill(pid, signal.SIGTERM)
        assert psutil.wait_procs(ended, timeout=DEADLINE_S)[1] == []


def test_workers_that_come_and_go_for_long_do_not_stop_the_server(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What it has to say of those that ended is more than its socket holds."""

    pair = socket.socketpair

    def narrow() -> tuple[socket.socket, socket.socket]:
        ours, its = pair()
        its.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least there is: for a few messages
        return ours, its

    monkeypatch.setattr(processes_module.socket, "socketpair", narrow)
    with ProcessPool(1) as pool:
        for _ in range(30):
            pool.end(pool.members[0])
            pool.reconcile()
        with pytest.raises(WorkerError, match=r"2 times in a row; .* ended unexpectedly by SIGKILL"):
            list(pool.run(killed, {1: (tmp_path / "deaths", 2)}))
        assert results(pool, square, {1: 2}) == {1: 4}


def test_closing_a_pool_whose_workers_died_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    with ProcessPool(2, cpus_per_worker=0.5) as pool:
        pids = set(results(pool, process, {i: i for i in range(10)}).values())
        ended = alive(pids)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert psutil.wait_procs(ended, timeout=DEADLINE_S)[1] == []
    assert capfd.readouterr() == ("", "")
    assert pool._server.returncode == 0


SCRIPT = """
import os, sys
from dataclasses import dataclass
from core.pool import ProcessPool

@dataclass
class Point:
    x: int

def twice(point):
    print("worker speaks")
    return Point(2 * point.x)

shift = 1
with ProcessPool(1) as pool:
    (done,) = pool.run(twice, {1: Point(3)})
    assert done.result == Point(6) and type(done.result) is Point
    (done,) = pool.run(lambda point: point.x + shift, {1: Point(3)})
    assert done.result == 4
    shared = pool.share(bytes(1000))
    print(pool._server.pid, pool.members[0].hand.pid, *pool._folder.paths, flush=True)
    sys.stdin.read()
    list(pool.run(lambda seconds: __import__("time").sleep(seconds), {1: 600.0}))
"""


@pytest.fixture
def script(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A program that has used a pool, with types and functions of its own, and is in the middle of it."""
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, tmp_path / "script.py"], env={**environment, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as program:  # fmt: skip
        yield program
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGKILL)


@pytest.mark.parametrize("kill", [os.kill, os.killpg])
def test_nothing_is_left_of_a_pool_whose_program_is_killed(script: subprocess.Popen[str], kill: Any) -> None:
    assert script.stdout is not None and script.stdin is not None
    server, worker, *folders = script.stdout.readline().split()
    there = [psutil.Process(int(pid)) for pid in (server, worker)]
    assert folders and all(os.path.isdir(folder) for folder in folders)
    script.stdin.close()
    kill(script.pid, signal.SIGKILL if kill is os.kill else signal.SIGTERM)
    assert psutil.wait_procs(there, timeout=DEADLINE_S)[1] == []
    assert not any(os.path.exists(folder) for folder in folders)
    assert script.stderr is not None
    assert script.stderr.read() == "worker speaks\n"


def test_results_that_are_kept_hold_no_file_descriptors() -> None:
    with ProcessPool(1, cpus_per_worker=0.5) as pool:
        before = len(os.listdir("/proc/self/fd"))
        kept = results(pool, double, {i: np.ones(50_000) for i in range(60)})
        assert len(os.listdir("/proc/self/fd")) == before
        assert all((result == 2).all() for result in kept.values())


def added(much: np.ndarray[Any, Any], item: int) -> float:
    return float(much.sum()) + item


def test_a_function_with_much_bound_to_it_travels_once_and_is_freed_after_the_run() -> None:
    with ProcessPool(2, cpus_per_worker=0.5) as pool:
        assert results(pool, functools.partial(added, np.ones(100_000)), {1: 1, 2: 2}) == {1: 100_001, 2: 100_002}
        assert not pool.shares
        assert results(pool, double, {1: 1}) == {1: 2}


def test_a_folder_whose_owner_was_killed_is_removed_by_the_next_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_module, "MEMORY", str(tmp_path))
    monkeypatch.setattr(wire_module.tempfile, "gettempdir", lambda: str(tmp_path))
    alive = wire_module.Folder.make()
    dead = wire_module.Folder.make()
    for lock in dead._locks:  # as the system does when a process ends, however it ends
        lock.close()
    strange = tmp_path / "hanse-pool-without-a-lock"
    strange.mkdir()
    third = wire_module.Folder.make()
    there = {str(path) for path in tmp_path.iterdir()}
    assert there == {*alive.paths, *third.paths, str(strange)}
    alive.remove(), third.remove()


def test_a_class_that_was_loaded_anew_is_sent_as_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("loaded_anew")
    monkeypatch.setitem(sys.modules, "loaded_anew", module)

    def load() -> type:
        kind = type("Thing", (), {"__module__": "loaded_anew"})
        module.__dict__["Thing"] = kind
        return kind

    first = load()
    wire_module.seal(first, None)
    second = load()
    assert wire_module.opened(wire_module.seal(second, None)) is second
    assert wire_module.opened(wire_module.seal(first, None)) is not second


def test_an_interrupt_in_the_middle_of_a_message_costs_its_worker_and_not_the_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ProcessPool(1, cpus_per_worker=0.5) as pool:
        assert results(pool, double, {1: 1}) == {1: 2}

        def interrupted(connection: Any, message: bytes) -> None:
            raise KeyboardInterrupt

        running = pool.run(double, {1: 1})
        with monkeypatch.context() as patch:
            patch.setattr(processes_module.Connection, "send_bytes", interrupted)
            with pytest.raises(KeyboardInterrupt):
                next(running)
        assert results(pool, double, {3: 3}) == {3: 6}


def test_no_item_runs_twice_because_others_are_still_starting(tmp_path: Path) -> None:
    """The first worker that is up is given nothing ahead of those that are not."""
    files = [tmp_path / str(i) for i in range(3)]
    with ProcessPool(3, cpus_per_worker=0.5) as starting:
        items = {i: (file, files) for i, file in enumerate(files)}
        assert len(set(results(starting, meet, items).values())) == 3
    assert [file.read_text() for file in files] == ["x", "x", "x"]


def test_an_item_is_not_blamed_for_a_worker_that_was_dead_before_it_came(tmp_path: Path) -> None:
    with ProcessPool(2, cpus_per_worker=0.5) as pool:
        for attempt in range(4):
            files = [tmp_path / f"{attempt}-{i}" for i in range(2)]
            pids = list(results(pool, meet, {i: (file, files) for i, file in enumerate(files)}).values())
            assert len(set(pids)) == 2
            assert results(pool, killed_with, {1: (tmp_path / f"{attempt}-killed", pids)}) == {1: "done"}


def test_of_a_dead_worker_it_is_known_what_it_had_begun(tmp_path: Path) -> None:
    with ProcessPool(1, cpus_per_worker=0.5) as pool:
        for is_awake in (True, False):
            results(pool, double, {1: 1})
            (member,) = pool.members
            loaded = pool.begin(member, pool.packed(endless))
            while not pool.wait([loaded], DEADLINE_S):
                pass
            started = tmp_path / str(is_awake)
            process = psutil.Process(member.hand.pid)
            if not is_awake:
                process.suspend()
            calls = [pool.work(member, started), pool.work(member, started)]
            if is_awake:
                meet((tmp_path / "here", [started]))
            process.kill()
            while not (lost := pool.outcomes(pool.wait(calls, DEADLINE_S))):
                pass
            assert [isinstance(one, Lost) and one.began for one in lost] == [is_awake, False]
