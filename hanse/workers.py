"""The workers that a run spreads its work over: processes of this machine, or actors of a Ray cluster."""

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from core.pool import ProcessPool, WorkerPool

Record = dict[str, Any]
Waiting = tuple[Callable[[Record], None], Callable[[], bool]]  # who is shown records, and what tells whether to stop
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
    waiting: Waiting | None = None,
) -> Iterator[WorkerPool]:
    """`count` workers, for as long as they are needed. `preload`, `path`: see `core.pool.ProcessPool`; `waiting`: who
    hears what is waited for where a cluster has no room, and what tells whether to stop: nothing may be given to the
    workers then.

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
        address_of(address),
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
        waiting=waiting and (lambda said: waiting[0]({"event": "waiting", "message": said}), waiting[1]),
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


def address_of(address: str | None) -> str | None:
    """Where the workers of a run are: at its `address`, else where RAY_ADDRESS says, as for all of Ray."""
    return address or os.environ.get("RAY_ADDRESS") or None


def is_forked(address: str | None) -> bool:
    """Whether the workers are processes of this machine: elsewhere than on Linux, Ray is what starts those too."""
    return address_of(address) is None and sys.platform == "linux"


def gpu_share(count: int) -> float:
    """Of this machine's GPUs for each of `count` workers: one, or a part of one where there are more workers."""
    import torch

    gpus = torch.cuda.device_count()
    return min(1.0, 1 / math.ceil(count / gpus)) if gpus else 0.0


def place_of(count: int, address: str | None) -> str:
    """What a run's header says of its workers."""
    if is_forked(address):
        return f"{count} process{'' if count == 1 else 'es'}"
    return f"{count} Ray worker{'' if count == 1 else 's'} {ray_place(address)}"


def ray_place(address: str | None) -> str:
    """Where the Ray of a run is, in words."""
    where = address_of(address)
    if where in (None, LOCAL):
        return "on this machine"
    return f"at {where}{'' if address else ' (RAY_ADDRESS)'}"
