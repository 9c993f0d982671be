"""`RayPool`: a `core.pool.WorkerPool` of persistent Ray actors, inside an open session.

    with ray_pool(workers=4) as pool:
        weights = pool.share(model.state_dict())
        for done in pool.run(functools.partial(score, weights), clients): ...

A worker that dies is replaced and its items run again; workers join and leave while a run goes on.
"""

import contextlib
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from cluster.session import session
from core.errors import ConfigError, ResourceError
from core.pool import Done, ItemTimes, K, require_alone, require_open

if TYPE_CHECKING:
    import ray

T = TypeVar("T")
R = TypeVar("R")


@dataclass(eq=False)
class Member:
    """One actor as its pool sees it: `queue` are its unfinished items in order."""

    number: int
    actor: Any
    place: str = ""  # its process and machine, once it is up
    queue: "dict[ray.ObjectRef[Any], Any]" = field(default_factory=dict)
    holds: set[str] = field(default_factory=set)
    run: object = None  # the run whose function it was sent
    is_leaving: bool = False


class RayPool:
    """Workers that stay, each an actor with its own process; see `core.pool.WorkerPool` for what they promise.

    They start at once, side by side, and a run begins with the first that is up. Where the cluster has room for only
    some, the run goes on with those, and the others join when there is room; ResourceError if no node could ever hold
    one, or if none has started after `start_timeout_s`. A worker sees the GPUs of its share, and none without one;
    torch in it uses `cpus_per_worker` threads.

    An item whose worker dies runs again; if it was certainly being executed (no other was with the worker) twice in a
    row, the run ends with a WorkerError. So an item may run more than once, also where one was given to a worker ahead
    and the one before it takes unexpectedly long; its result counts once.

    A result that cannot be serialized, or whose tensors, arrays and strings take more than `max_result_bytes`, is a
    WorkerError. Tensors in shared values and results arrive detached and on the CPU, without copies: those of a shared
    value must not be written to. Arrays arrive read-only.
    """

    def __init__(
        self,
        workers: int,
        *,
        cpus_per_worker: float = 1.0,
        gpus_per_worker: float = 0.0,
        resources: Mapping[str, float] | None = None,
        max_result_bytes: int = 1 << 30,
        start_timeout_s: float = 120.0,
    ) -> None:
        _require_positive(workers)
        import ray

        from cluster.pool_worker import Worker  # imports ray, which must find its settings

        _require_fit({"CPU": cpus_per_worker, "GPU": gpus_per_worker, **(resources or {})})
        # A dead worker is replaced here, where it is known what it was doing, and not by Ray
        self._actor: Any = ray.remote(Worker).options(
            num_cpus=cpus_per_worker, num_gpus=gpus_per_worker, resources=dict(resources or {}), max_restarts=0
        )
        self._arguments = (cpus_per_worker, gpus_per_worker, max_result_bytes)
        self.max_result_bytes, self.start_timeout_s = max_result_bytes, start_timeout_s
        self.times = ItemTimes()
        self.members: list[Member] = []
        self.shares: dict[str, ray.ObjectRef[Any]] = {}
        self._target, self._started, self._is_running = workers, 0, False
        self.is_open = True
        self.reconcile()

    @property
    def workers(self) -> int:
        """How many there are; one that is starting, or being replaced, counts."""
        return self._target

    def resize(self, workers: int) -> None:
        """Starts workers, or lets some leave when they have finished their item. May be called during a run, also from
        another thread, which the run notices within a fraction of a second."""
        require_open(self.is_open)
        _require_positive(workers)
        self._target = workers
        if not self._is_running:
            self.reconcile()

    def share(self, value: T) -> "RayShared[T]":
        """`value` in Ray's object store: one copy on each machine, which all its workers read."""
        require_open(self.is_open)
        from cluster.pool_send import put_value
        from cluster.pool_worker import hold

        ref, name = put_value(value), uuid.uuid4().hex
        shared: RayShared[T] = RayShared(name, self)
        hold(name, ref)
        self.shares[name] = ref
        # The workers hear of it with their next item: a finalizer may run at any time, also in the middle of a call
        weakref.finalize(shared, _forget, self.shares, name).atexit = False
        return shared

    def release(self, name: str) -> None:
        """Frees a shared value, here and in the workers."""
        _forget(self.shares, name)
        for member in self.members:
            self.synchronize(member)

    def synchronize(self, member: Member) -> None:
        """Tells a worker which shared values there are; its later items may read them."""
        if member.holds != self.shares.keys():
            if gone := member.holds - self.shares.keys():
                member.actor.drop.remote(list(gone))
            if new := {name: [ref] for name, ref in self.shares.items() if name not in member.holds}:
                member.actor.hold.remote(new)
            member.holds = set(self.shares)

    def run(
        self, fn: Callable[[T], R], items: Mapping[K, T], cost: Mapping[K, float] | None = None
    ) -> Iterator[Done[K, R]]:
        """See `core.pool.WorkerPool.run`. Only a few items a worker are under way at any time: one, one more while
        there are plenty for all, or a few while items take milliseconds, so that no worker waits for its next."""
        require_open(self.is_open)
        from cluster.pool_send import put_function, require_serializable

        function = put_function(fn)
        require_serializable(items)
        return self._results(function, items, self.times.longest_first(items, cost or {}))

    def _results(self, function: "ray.ObjectRef[Any]", items: Mapping[K, T], order: list[K]) -> Iterator[Done[K, Any]]:
        from cluster.pool_run import Run

        require_alone(self._is_running)
        require_open(self.is_open)
        self._is_running = True
        try:
            yield from Run(self, function, items, order).results()
        finally:
            self._is_running = False

    def reconcile(self) -> None:
        """Starts the workers that are missing; ends those that are too many and have nothing left to do."""
        staying = [member for member in self.members if not member.is_leaving]
        for _ in range(self._target - len(staying)):
            self.members.append(Member(self._started, self._actor.remote(*self._arguments)))
            self._started += 1
        if len(staying) > self._target:
            idle_first = sorted(staying, key=lambda member: len(member.queue))
            for member in idle_first[: len(staying) - self._target]:
                member.is_leaving = True
        for member in [m for m in self.members if m.is_leaving and not m.queue]:
            self.end(member)

    def end(self, member: Member) -> None:
        """Ends a worker, whatever it is doing."""
        import ray

        self.members.remove(member)
        ray.kill(member.actor)

    def close(self) -> None:
        """Ends the workers at once, also in the middle of a run; a second call does nothing."""
        self.is_open = False
        for member in list(self.members):
            self.end(member)
        for name in list(self.shares):
            _forget(self.shares, name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


class RayShared(Generic[T]):
    """A handle of a value in the object store. It travels as its name, so it costs an item next to nothing."""

    def __init__(self, name: str, pool: RayPool | None = None) -> None:
        self._name, self._pool = name, pool

    def get(self) -> T:
        """The value; its tensors and arrays lie in memory that others read too. ConfigError if it was released."""
        from cluster.pool_worker import read

        value: T = read(self._name)
        return value

    def release(self) -> None:
        """Frees the value. Raises ConfigError in a worker: only the process that shared it knows who needs it."""
        if self._pool is None:
            raise ConfigError("share: a worker cannot release a value; do it where it was shared")
        self._pool.release(self._name)

    def __reduce__(self) -> tuple[Any, ...]:
        return RayShared, (self._name,)


@contextlib.contextmanager
def ray_pool(
    workers: int,
    address: str | None = None,
    *,
    cpus_per_worker: float = 1.0,
    gpus_per_worker: float = 0.0,
    resources: Mapping[str, float] | None = None,
) -> Iterator[RayPool]:
    """A session and a pool in it: a Ray on this machine, or the cluster at `address`. Raises what both raise."""
    _require_positive(workers)
    needs: dict[str, Any] = {"gpus_per_worker": gpus_per_worker, "resources": resources}
    with (
        session(address, workers * cpus_per_worker),
        RayPool(workers, cpus_per_worker=cpus_per_worker, **needs) as pool,
    ):
        yield pool


def _forget(shares: "dict[str, ray.ObjectRef[Any]]", name: str) -> None:
    from cluster.pool_worker import drop

    shares.pop(name, None)
    drop(name)


def _require_positive(workers: int) -> None:
    if workers < 1:
        raise ConfigError(f"workers: there must be at least one, not {workers}")


def _require_fit(needs: dict[str, float]) -> None:
    """ConfigError if there can be no such worker, ResourceError if no node, were it idle, has what one needs."""
    import ray

    if not ray.is_initialized():
        raise ConfigError("pool: no session is open; use ray_pool, or open cluster.session.session first")
    for name, needed in needs.items():
        if needed < 0 or (name == "GPU" and needed > 1 and needed % 1):
            raise ConfigError(f"workers: each needs {needed:g} {name}; give a share of one or a whole number")
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    for name, needed in needs.items():
        most = max((node.get(name, 0.0) for node in nodes), default=0.0)
        if needed > most:
            option = f"{name.lower()}s_per_worker" if name in ("CPU", "GPU") else f"resources.{name}"
            raise ResourceError(
                f"workers: each needs {needed:g} {name} and no node of the cluster has over {most:g}; lower {option}"
            )
    if not any(all(node.get(name, 0.0) >= needed for name, needed in needs.items()) for node in nodes):
        raise ResourceError(f"workers: no node of the cluster has all that each needs: {needs}; ask for less of one")
