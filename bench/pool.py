"""`RayPool` with two workers beside two plain Ray actors, and `ProcessPool` beside the standard library's executor:
trivial items a second, 200 MB of weights given to both (the seconds until each has summed its half, and the memory that
it takes), and the time until workers that need torch are there."""

import functools
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from bench.measure import alternate, emit
from cluster.pool import RayPool, ray_pool
from cluster.session import session
from core.pool import ProcessPool, Shared, WorkerPool

if TYPE_CHECKING:
    import torch

ITEMS = 4000
IN_FLIGHT = 8  # what a pool of two has at most
LAYERS, LAYER_BYTES = 50, 4_000_000
Weights = dict[str, "torch.Tensor"]


def run() -> None:
    weights = _weights()
    few = {name: tensor[:8] for name, tensor in weights.items()}
    with session(None, 2), RayPool(2, cpus_per_worker=0.5) as pool:
        actors = _plain_actors(2)
        _pool_items(pool)
        emit(
            "pool of 2, trivial items/s, over plain actors",
            in_flight=IN_FLIGHT,
            **alternate(lambda: _pool_items(pool), lambda: _plain_items(actors), 7),
        )
        _share(pool, few)
        _put(actors, few)  # torch is imported by all
        emit(
            "pool of 2, seconds until each has summed its half of 200 MB of weights, over ray.put and plain actors",
            ours_first=_share(pool, weights)[0],  # into memory that the object store has not used yet
            **alternate(lambda: _share(pool, weights)[0], lambda: _put(actors, weights)[0], 7),
        )
    emit(
        "pool of 2, copies of 200 MB of weights in memory, over ray.put and plain actors",
        **alternate(lambda: _pool_copies(few, weights), lambda: _plain_copies(few, weights), 3),
    )
    _processes(few, weights)


def _processes(few: Weights, weights: Weights) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPool(2, preload=("torch",)) as pool, ProcessPoolExecutor(2, mp_context=context) as executor:
        _pool_items(pool), _executor_items(executor)
        emit(
            "2 processes, trivial items/s, over concurrent.futures",
            **alternate(lambda: _pool_items(pool), lambda: _executor_items(executor), 7),
        )
        _share(pool, few)
        seconds = sorted(_share(pool, weights)[0] for _ in range(7))
        emit("2 processes, seconds until each has summed its half of 200 MB of weights", ours=seconds[3])
    with ProcessPool(2, preload=("torch",)) as fresh:  # a released value stays mapped until a worker's next item
        _share(fresh, few)
        emit("2 processes, copies of 200 MB of weights in memory", ours=_share(fresh, weights)[1])
    emit(
        "seconds until 2 workers have imported torch and done an item, over a RayPool",
        **alternate(_start_of_processes, _start_of_actors, 3),
    )


def _start_of_processes() -> float:
    began = time.perf_counter()
    with ProcessPool(2, preload=("torch",)) as pool:
        list(pool.run(with_torch, {0: 0, 1: 1}))
        return time.perf_counter() - began


def _start_of_actors() -> float:
    began = time.perf_counter()
    with ray_pool(2) as pool:
        list(pool.run(with_torch, {0: 0, 1: 1}))
        return time.perf_counter() - began


def with_torch(item: int) -> str:
    import torch

    return torch.__version__


def _executor_items(executor: ProcessPoolExecutor) -> float:
    """As many under way as the executor likes."""
    began = time.perf_counter()
    count = sum(1 for _ in executor.map(same, range(ITEMS)))
    return count / (time.perf_counter() - began)


def _pool_copies(few: Weights, weights: Weights) -> float:
    """In a session of its own: an object store keeps the memory that it has used."""
    with session(None, 2), RayPool(2, cpus_per_worker=0.5) as pool:
        _share(pool, few)
        return _share(pool, weights)[1]


def _plain_copies(few: Weights, weights: Weights) -> float:
    with session(None, 2):
        actors = _plain_actors(2)
        _put(actors, few)
        return _put(actors, weights)[1]


def same(item: int) -> int:
    return item


def half_of(shared: Shared[Weights], folder: Path, half: int) -> float:
    (folder / str(half)).touch()
    while not (folder / str(1 - half)).exists():  # else one quick worker might do both
        time.sleep(0.0005)
    return _sum(shared.get(), half)


def _sum(weights: Weights, half: int) -> float:
    return float(sum(tensor.chunk(2)[half].sum() for tensor in weights.values()))


def _plain_actors(number: int) -> list[Any]:
    import ray

    class Plain:
        def same(self, item: int) -> int:
            return item

        def half_of(self, weights: Weights, half: int) -> float:
            self.weights = weights  # as a worker that goes on using them does
            return _sum(weights, half)

        def drop(self) -> None:
            del self.weights

    actors = [ray.remote(Plain).options(num_cpus=0.5).remote() for _ in range(number)]
    ray.get([actor.same.remote(0) for actor in actors])
    return actors


def _pool_items(pool: WorkerPool) -> float:
    began = time.perf_counter()
    count = sum(1 for _ in pool.run(same, {i: i for i in range(ITEMS)}))
    return count / (time.perf_counter() - began)


def _plain_items(actors: list[Any]) -> float:
    import ray

    began = time.perf_counter()
    left = iter(range(ITEMS))
    flying = {actor.same.remote(next(left)): actor for _ in range(IN_FLIGHT // len(actors)) for actor in actors}
    count = 0
    while flying:
        (ready,), _ = ray.wait(list(flying))
        actor = flying.pop(ready)
        ray.get(ready)
        count += 1
        if (item := next(left, None)) is not None:
            flying[actor.same.remote(item)] = actor
    return count / (time.perf_counter() - began)


def _weights() -> Weights:
    import torch

    return {str(i): torch.randn(LAYER_BYTES // 4) for i in range(LAYERS)}


def _share(pool: WorkerPool, weights: Weights) -> tuple[float, float]:
    """Seconds, and copies in memory beside the one that is given."""
    before, began = _memory(), time.perf_counter()
    shared = pool.share(weights)
    with tempfile.TemporaryDirectory() as folder:
        list(pool.run(functools.partial(half_of, shared, Path(folder)), {0: 0, 1: 1}))
    seconds = time.perf_counter() - began
    copies = (_memory() - before) / (LAYERS * LAYER_BYTES)
    shared.release()
    return seconds, copies


def _put(actors: list[Any], weights: Weights) -> tuple[float, float]:
    import ray

    before, began = _memory(), time.perf_counter()
    ref = ray.put(weights)
    ray.get([actor.half_of.remote(ref, half) for half, actor in enumerate(actors)])
    seconds = time.perf_counter() - began
    copies = (_memory() - before) / (LAYERS * LAYER_BYTES)
    ray.get([actor.drop.remote() for actor in actors])
    del ref
    return seconds, copies


def _memory() -> float:
    """Bytes resident in this process and all it started, shared pages once (PSS)."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return float(sum(process.memory_full_info().pss for process in processes))
