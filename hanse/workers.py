"""The workers that a run spreads its work over: processes of this machine, or actors of a Ray cluster."""

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from core.pool import ProcessPool, WorkerPool

LOCAL = "local"  # the address of a Ray on this machine, started and ended with the run


@contextmanager
def workers(
    count: int,
    address: str | None,
    *,
    cpus_per_worker: float = 1.0,
    gpus_per_worker: float = 0.0,
    preload: Sequence[str] = (),
    path: Sequence[str] = (),
) -> Iterator[WorkerPool]:
    """`count` workers, for as long as they are needed. `preload`, `path`: see `core.pool.ProcessPool`.

    Raises ResourceError if there is no room for them or nothing answers at the address.
    """
    if is_forked(address):
        with ProcessPool(
            count, cpus_per_worker=cpus_per_worker, gpus_per_worker=gpus_per_worker, preload=preload, path=path
        ) as processes:
            yield processes
        return
    from cluster.pool import ray_pool

    with ray_pool(
        count,
        None if address == LOCAL else address,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
    ) as actors:
        yield actors


@contextmanager
def threads_of_worker(cpus_per_worker: float) -> Iterator[None]:
    """Torch in this process uses the threads that a worker's would: the last bit of a sum depends on it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, int(cpus_per_worker)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def is_forked(address: str | None) -> bool:
    """Whether the workers are processes of this machine: elsewhere than on Linux, Ray is what starts those too."""
    return address is None and sys.platform == "linux"


def gpu_share(count: int) -> float:
    """Of this machine's GPUs for each of `count` workers: one, or a part of one where there are more workers."""
    import torch

    gpus = torch.cuda.device_count()
    return min(1.0, 1 / math.ceil(count / gpus)) if gpus else 0.0


def place_of(count: int, address: str | None) -> str:
    """What a run's header says of its workers."""
    kind, many = ("process", "es") if is_forked(address) else ("Ray worker", "s")
    where = "" if is_forked(address) else " on this machine" if address in (None, LOCAL) else f" at {address}"
    return f"{count} {kind}{'' if count == 1 else many}{where}"
