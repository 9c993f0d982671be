"""Workers of pools that are killed with work in their hands, and Ctrl-C in the middle: real processes of two kinds."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from cluster.pool import RayPool
from cluster.session import session
from core.errors import WorkerError
from core.pool import ProcessPool
from core.pool.crew import Crew
from tests.crew_contract import alive
from tests.pool_contract import results
from tests.pool_work import DEADLINE_S, Stillborn, double, endless_or_process, killed, meet, process

# Ray warns about its own deprecated settings in this process, which starts it
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

ROOT = Path(__file__).resolve().parents[2]
KINDS = ["processes", pytest.param("ray", marks=pytest.mark.ray)]


@pytest.fixture(scope="module")
def ray_session() -> Iterator[None]:
    with session(None, 2):
        yield


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "ray":
        request.getfixturevalue("ray_session")
    return str(request.param)


@pytest.fixture
def pool(kind: str) -> Iterator[Crew]:
    """Two workers; whatever happens to them, none is left when their pool is closed."""
    before = set(psutil.Process().children(recursive=True))
    with ProcessPool(2, cpus_per_worker=0.5) if kind == "processes" else RayPool(2, cpus_per_worker=0.5) as pool:
        yield pool
        there = set(alive(int(member.place.split()[1]) for member in pool.members if member.place))
        if kind == "processes":  # Ray keeps processes of its own ready for as long as its session
            there |= set(psutil.Process().children(recursive=True)) - before
    assert psutil.wait_procs(there, timeout=DEADLINE_S)[1] == []


def never(folder: Path) -> dict[int, tuple[Path, int]]:
    """Thirty items that kill no worker."""
    return dict.fromkeys(range(30), (folder / "none", 0))


@pytest.mark.parametrize("seconds", [1e-4, 10.0], ids=["with others queued behind it", "alone"])
def test_an_item_whose_worker_is_killed_runs_again_and_counts_once(
    seconds: float, pool: Crew, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    items = never(tmp_path) | {7: (tmp_path / "seven", 1), 8: (tmp_path / "eight", 1)}
    for key in items:
        pool.times.learn(key, seconds)
    found = results(pool, killed, items)
    assert found == dict.fromkeys(items, 0) | {7: 1, 8: 1}
    assert len(results(pool, process, {i: i for i in range(10)})) == 10
    assert "died" not in "".join(capfd.readouterr())  # it is made good, so nobody needs to hear of it


@pytest.mark.parametrize(
    "seconds, deaths",
    [(1e-4, 3), (10.0, 2)],
    ids=["with others queued behind it", "alone"],
)
def test_an_item_that_kills_its_worker_twice_ends_the_run_and_is_named(
    seconds: float, deaths: int, pool: Crew, tmp_path: Path
) -> None:
    """Of those that were with the worker together, each runs alone before one is blamed."""
    items = never(tmp_path) | {17: (tmp_path / "seventeen", 9)}
    for key in items:
        pool.times.learn(key, seconds)
    with pytest.raises(WorkerError) as caught:
        list(pool.run(killed, items))
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith("item 17 was being executed when its worker died, 2 times in a row; the last was worker ")
    assert "(process " in said and "unexpectedly" in said
    assert (tmp_path / "seventeen").read_text() == "x" * deaths
    assert len(results(pool, process, {i: i for i in range(10)})) == 10


def test_a_worker_that_is_killed_between_two_runs_is_replaced(pool: Crew) -> None:
    pids = set(results(pool, process, {i: i for i in range(20)}).values())
    ended = alive(pids)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert psutil.wait_procs(ended, timeout=DEADLINE_S)[1] == []
    large = {i: np.ones(100_000) for i in range(4)}
    assert {i: found.sum() for i, found in results(pool, double, large).items()} == dict.fromkeys(large, 200_000)
    assert not pids & set(results(pool, process, {i: i for i in range(20)}).values())


def test_workers_that_all_die_while_they_start_end_the_run(
    kind: str, pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.resize(1)
    ended = alive(results(pool, process, {1: 1}).values())
    if kind == "processes":
        cause = "its process could not be started; the one that starts them has ended"
        pool._server.kill()
        pool._server.wait()
    else:
        import ray

        cause = "ActorDiedError: "
        monkeypatch.setattr(pool, "_actor", ray.remote(Stillborn).options(num_cpus=0.5))
    pool.end(pool.members[0])
    assert psutil.wait_procs(ended, timeout=DEADLINE_S)[1] == []
    with pytest.raises(WorkerError, match=f"workers: 3 in a row died while starting: {cause}") as caught:
        list(pool.run(process, {1: 1}))
    assert "\n" not in str(caught.value)


def test_an_item_that_never_ends_is_cut_off_when_its_run_is_closed(pool: Crew, tmp_path: Path) -> None:
    running = pool.run(endless_or_process, {"endless": tmp_path / "pid", 1: None, 2: None}, cost={"endless": 9})
    next(running)
    meet((tmp_path / "here", [tmp_path / "pid"]))
    endless = alive([int((tmp_path / "pid").read_text())])
    running.close()
    assert psutil.wait_procs(endless, timeout=DEADLINE_S)[1] == []
    assert len(results(pool, process, {i: i for i in range(10)})) == 10


PROGRAM = """
import sys
from pathlib import Path
from {room} import {name}
from tests.pool_work import endless_or_process

try:
    with {name}(2, cpus_per_worker=0.5) as pool:
        for done in pool.run(endless_or_process, {{"endless": Path(sys.argv[1]), 1: None}}, cost={{"endless": 9}}):
            print("going", flush=True)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_ctrl_c_in_the_middle_ends_every_process_quietly(kind: str, tmp_path: Path) -> None:
    room, name = ("core.pool", "ProcessPool") if kind == "processes" else ("cluster.pool", "ray_pool")
    main = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PROGRAM.format(room=room, name=name), str(tmp_path / "pid")],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert main.stdout is not None
        assert main.stdout.readline() == "going\n"
        children = psutil.Process(main.pid).children(recursive=True)
        assert len(children) > 2
        os.killpg(main.pid, signal.SIGINT)  # as a terminal does it: to all processes of the group
        out, err = main.communicate(timeout=DEADLINE_S)
    finally:
        if main.poll() is None:
            os.killpg(main.pid, signal.SIGKILL)
    assert (main.returncode, out, err) == (130, "", "")
    assert psutil.wait_procs(children, timeout=DEADLINE_S)[1] == []
