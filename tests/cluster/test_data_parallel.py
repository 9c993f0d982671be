"""Training through Ray Train: the numbers of one process, a worker that dies, a clean end. For the first test a Ray is
started; the others join one at an address, which takes less time."""

import contextlib
import dataclasses
import ipaddress
import json
import os
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import safetensors.torch

import hanse
from cluster import data_parallel, keeper
from cluster.session import session
from core.config import parse_run
from core.ensemble.repeat import Repeat
from core.errors import DataError, ResourceError, WorkerError
from core.recipe import TrainRun
from core.runtime import Record
from core.storage.store import RunDirectory
from hanse.repeat import Watch
from hanse.repeat import train as train_repeat
from hanse.workers import LOCAL, place_of, workers

# Ray warns about its own deprecated settings in this process, which starts it
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")]

DIGITS = {
    "name": "digits",
    "data": {"kind": "image", "augment": {"crop": 1}},
    "model": {"kind": "cnn", "channels": [8, 8], "dropout": 0.1},
    "train": {"steps": 30, "batch_size": 100, "accumulate": 2, "log_every": 1, "checkpoint_every": 10},
}


def train(folder: Path, **changes: Any) -> "hanse.Trained":
    return hanse.train(DIGITS, {"run_dir": str(folder), **{k.replace("__", "."): v for k, v in changes.items()}})


def curve(run: Path) -> dict[int, float]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {r["step"]: r["loss"] for r in records if r["split"] == "train"}


def difference(a: Path, b: Path) -> float:
    first, second = (safetensors.torch.load_file(run / "model" / "model.safetensors") for run in (a, b))
    return max(((first[n] - second[n]).norm() / first[n].norm().clamp(min=1e-3)).item() for n in first)


def ray_workers() -> list[psutil.Process]:
    """The Train workers of this test's own Ray: descendants of this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@contextmanager
def started_workers() -> Iterator[set[int]]:
    """The process ids of the Train workers that this test's Ray has had by the end of the block."""
    found, ended = set[int](), threading.Event()

    def look() -> None:
        while not ended.wait(0.1):
            found.update(process.pid for process in ray_workers())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("alone") / "run").run


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


@dataclasses.dataclass
class Watched:
    """A training on a Ray of its own: where its processes listened, and its folders with their modes, while it ran."""

    trained: "hanse.Trained"
    listeners: set[str]
    folders: dict[Path, int]


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    over, listeners, folders = threading.Event(), set[str](), dict[Path, int]()

    def watch() -> None:
        while not over.wait(0.5):
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    listeners.update(c.laddr.ip for c in process.net_connections("tcp") if c.status == "LISTEN")
            folders.update({folder: folder.stat().st_mode for folder in ray_folders()})

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        trained = train(tmp_path_factory.mktemp("embedded") / "run", workers=2)
    finally:
        over.set()
        thread.join()
    return Watched(trained, listeners, folders)


def ray_folders() -> list[Path]:
    """Those of this process's Ray, by its keeper: tests beside this one have folders of theirs."""
    found = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error, FileNotFoundError):
            command = process.cmdline()
            if keeper.__file__ in command and Path(command[-1]).exists():
                found.append(Path(command[-1]))
    return found


def test_an_embedded_ray_and_torch_on_it_listen_on_the_loopback_address_only(embedded: Watched) -> None:
    addresses = [ipaddress.ip_address(listener) for listener in embedded.listeners]
    assert addresses
    assert all((getattr(address, "ipv4_mapped", None) or address).is_loopback for address in addresses), addresses


def test_an_embedded_ray_has_a_folder_for_this_user_alone_and_removes_it(embedded: Watched) -> None:
    assert embedded.folders and {stat.S_IMODE(mode) for mode in embedded.folders.values()} == {0o700}
    assert not any(folder.exists() for folder in embedded.folders)


def test_two_ray_workers_give_the_numbers_of_one_process(alone: Path, embedded: Watched) -> None:
    result = embedded.trained
    assert curve(result.run) == pytest.approx(curve(alone), rel=1e-5)
    assert difference(alone, result.run) < 1e-5
    alone_metrics = json.loads((alone / "summary.json").read_text())["metrics"]
    assert result.metrics == pytest.approx(alone_metrics, rel=1e-4)
    assert not ray_workers()  # nothing is left running


def test_a_worker_that_is_killed_costs_nothing_but_time(address: str, tmp_path: Path) -> None:
    run, killed = tmp_path / "run", threading.Event()

    def kill_one_worker() -> None:
        while not killed.wait(0.02):
            lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
            if len(lines) >= 13 and (workers := ray_workers()):
                os.kill(workers[-1].pid, signal.SIGKILL)
                killed.set()

    thread = threading.Thread(target=kill_one_worker, daemon=True)
    thread.start()
    try:
        result = train(run, address=address, workers=2, train__steps=150)  # long enough for the killer to come in time
        assert killed.is_set()
    finally:
        killed.set()
        thread.join()
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert "worker_failed" in {event["event"] for event in events}
    started = [event["step"] for event in events if event["event"] == "started"]
    assert started[0] == 0
    assert started[1] >= 10
    undisturbed = train(tmp_path / "undisturbed", address=address, workers=2, train__steps=150)
    assert result.summary["weights_sha256"] == undisturbed.summary["weights_sha256"]
    assert curve(run) == curve(undisturbed.run)


def test_an_elastic_run_takes_the_workers_that_fit_and_gives_the_numbers_of_one_process(
    alone: Path, address: str, tmp_path: Path
) -> None:
    with started_workers() as workers:
        result = train(tmp_path / "run", address=address, workers={"min": 1, "max": 5}, cpus_per_worker=0.5)
    assert len(workers) == 4  # on the two processors of this Ray
    assert curve(result.run) == pytest.approx(curve(alone), rel=1e-5)
    assert difference(alone, result.run) < 1e-5


def test_a_sharded_run_gives_the_numbers_of_one_process(alone: Path, address: str, tmp_path: Path) -> None:
    result = train(tmp_path / "run", address=address, workers=2, strategy="fsdp")
    assert curve(result.run) == pytest.approx(curve(alone), rel=1e-5)
    assert difference(alone, result.run) < 1e-5


def test_an_error_in_a_worker_is_the_users_one_line_error(address: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.csv"):
        train(
            tmp_path / "run", address=address, workers=1, data__kind="table", data__path=str(tmp_path / "missing.csv")
        )


def test_a_loss_that_is_not_finite_ends_the_run_without_retries(address: str, tmp_path: Path) -> None:
    with started_workers() as workers, pytest.raises(WorkerError, match="not finite at step"):
        train(tmp_path / "run", address=address, workers=2, optimizer__kind="sgd", optimizer__lr=1e30)
    assert len(workers) == 2


def test_ray_train_starts_no_helper_that_has_nothing_to_do(address: str, tmp_path: Path) -> None:
    with session(address, 1), RunDirectory.create(tmp_path / "run") as directory:
        from cluster.ray_train import needs_of, trainer_of

        def helpers(**changes: Any) -> set[str]:
            run = parse_run(TrainRun, {**DIGITS, "workers": 1, **changes})
            return {
                type(made).__name__ for made in trainer_of(run, directory, needs_of(run))._create_default_callbacks()
            }

        there, embedded = helpers(address=address), helpers()
    assert "BackendSetupCallback" in embedded and "DatasetsCallback" not in there
    assert there - embedded == {"PlacementGroupCleanerCallback"}


def test_more_workers_than_the_machine_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"workers: they ask for 999 CPUs and this machine has \d+"):
        train(tmp_path / "run", workers=999)


@pytest.fixture
def full(address: str) -> Iterator[str]:
    """A cluster with no processor free."""
    with session(address, 1):
        import ray

        class Holder:
            def hold(self) -> None:
                pass

        holds = {"num_cpus": 2, "lifetime": "detached", "name": "holder", "namespace": "test"}
        ray.get(ray.remote(Holder).options(**holds).remote().hold.remote())
    try:
        yield address
    finally:
        with session(address, 1):
            ray.kill(ray.get_actor("holder", namespace="test"))


def test_a_run_that_waits_for_the_cluster_says_so_and_the_first_signal_ends_it(full: str, tmp_path: Path) -> None:
    run = parse_run(TrainRun, {**DIGITS, "workers": 2, "address": full})
    said: list[Record] = []
    with RunDirectory.create(tmp_path / "run") as directory:
        summary = data_parallel.train(run, directory, said.append, lambda: bool(said))
    assert said == [{"event": "waiting", "message": "waiting for 2 CPUs, 0 of 2 free"}]
    assert (summary["ended"], summary["steps"]) == ("stopped", 0)


def test_a_repeat_that_waits_for_the_cluster_says_so_and_the_first_signal_ends_it(full: str, tmp_path: Path) -> None:
    repeat = Repeat(seeds=2)
    run = dataclasses.replace(parse_run(TrainRun, {**DIGITS, "workers": 2, "address": full}), repeat=repeat)
    said: list[Record] = []
    with RunDirectory.create(tmp_path / "run") as directory:
        watch = Watch(said.append, lambda: said[-1]["event"] == "waiting")
        summary = train_repeat(run, repeat, directory, watch)
    assert said[-1] == {"event": "waiting", "message": "waiting for 1 CPU, 0 of 2 free"}
    assert summary["ended"] == "stopped"


def test_a_run_goes_where_the_environment_says_and_its_first_lines_say_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ResourceError, match=r"address: no Ray answers at 127\.0\.0\.1:1 "):
        train(tmp_path / "run", workers=2)
    with pytest.raises(ResourceError, match=r"address: no Ray answers at 127\.0\.0\.1:1 "), workers(2, None):
        raise AssertionError
    assert place_of(2, None) == "2 Ray workers at 127.0.0.1:1 (RAY_ADDRESS)"
    assert place_of(2, "head:10001") == "2 Ray workers at head:10001"
    assert place_of(1, LOCAL) == "1 Ray worker on this machine"


def test_an_address_without_a_ray_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"address: no Ray answers at 127\.0\.0\.1:1 "):
        train(tmp_path / "run", workers=2, address="127.0.0.1:1")
