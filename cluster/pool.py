"""`RayPool`: a `core.pool.WorkerPool` of persistent Ray actors, inside an open session.

    with ray_pool(workers=4, address="head:10001") as pool:
        weights = pool.share(model.state_dict())
        for done in pool.run(functools.partial(score, weights), clients): ...

A worker that dies is replaced and its items run again; workers join and leave while a run goes on.
"""

import contextlib
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from cluster.embedded import busy, patience
from cluster.room import wait_for_room
from cluster.session import require_ray, session
from core.errors import ConfigError, ResourceError
from core.pool.crew import Crew, Member, require_positive
from core.pool.outcome import Outcome
from core.pool.protocol import require_open
from core.pool.shared import Handle

if TYPE_CHECKING:
    import ray

T = TypeVar("T")
START_TIMEOUT_S = 120.0


@dataclass(eq=False)
class Hand:
    """How an actor is reached, and the names of the shared values that it has heard of."""

    actor: Any
    holds: set[str] = field(default_factory=set)


class RayPool(Crew):
    """Workers that stay, each an actor with its own process; see `core.pool.crew.Crew` for what they promise.

    Where the cluster has room for only some, a run goes on with those, and the others join when there is room;
    ResourceError if no node could ever hold one, or if none has started after `start_timeout_s`. A worker sees the GPUs
    of its share, and none without one; torch in it uses `cpus_per_worker` threads.
    """

    def __init__(
        self,
        workers: int,
        *,
        cpus_per_worker: float = 1.0,
        gpus_per_worker: float = 0.0,
        resources: Mapping[str, float] | None = None,
        max_result_bytes: int = 1 << 30,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        super().__init__(workers, max_result_bytes, start_timeout_s)
        import ray

        from cluster.pool_worker import Worker  # imports ray, which must find its settings

        _require_fit({"CPU": cpus_per_worker, "GPU": gpus_per_worker, **(resources or {})})
        # A dead worker is replaced here, where it is known what it was doing, and not by Ray
        self._actor: Any = ray.remote(Worker).options(
            num_cpus=cpus_per_worker, num_gpus=gpus_per_worker, resources=dict(resources or {}), max_restarts=0
        )
        self._arguments = (cpus_per_worker, gpus_per_worker, max_result_bytes)
        self.shares: dict[str, ray.ObjectRef[Any]] = {}
        self.reconcile()

    def hire(self, number: int) -> Member:
        return Member(number, Hand(self._actor.remote(*self._arguments)))

    def dismiss(self, member: Member) -> None:
        import ray

        ray.kill(member.hand.actor)

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
            self._synchronize(member.hand)

    def _synchronize(self, hand: Hand) -> None:
        """Tells a worker which shared values there are; its later items may read them."""
        if hand.holds != self.shares.keys():
            if gone := hand.holds - self.shares.keys():
                hand.actor.drop.remote(list(gone))
            if new := {name: [ref] for name, ref in self.shares.items() if name not in hand.holds}:
                hand.actor.hold.remote(new)
            hand.holds = set(self.shares)

    def packed(self, fn: Callable[[Any], Any]) -> "ray.ObjectRef[Any]":
        from cluster.pool_send import put_function

        return put_function(fn)

    def require_sendable(self, items: Mapping[Any, Any]) -> None:
        from cluster.pool_send import require_serializable

        require_serializable(items)

    def begin(self, member: Member, function: "ray.ObjectRef[Any]") -> "ray.ObjectRef[Any]":
        call: ray.ObjectRef[Any] = member.hand.actor.begin.remote([function])
        return call

    def work(self, member: Member, item: Any) -> "ray.ObjectRef[Any]":
        self._synchronize(member.hand)
        call: ray.ObjectRef[Any] = member.hand.actor.work.remote(item)
        return call

    def wait(self, calls: "Sequence[ray.ObjectRef[Any]]", timeout_s: float) -> "list[ray.ObjectRef[Any]]":
        import ray

        require_ray()
        ready, rest = ray.wait(list(calls), timeout=timeout_s)
        if ready and rest:  # all that are there: asking for one at a time costs a search through all of them each
            ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        return ready

    def outcomes(self, calls: "Sequence[ray.ObjectRef[Any]]") -> list[Outcome | str]:
        from cluster.pool_send import outcomes

        return outcomes(calls)

    def no_room(self) -> str:
        import ray

        free: Any = ray.available_resources()  # type: ignore[no-untyped-call]
        return f"the cluster has {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs free{busy()}"

    def close(self) -> None:
        super().close()
        for name in list(self.shares):
            _forget(self.shares, name)


class RayShared(Handle[T]):
    """A value in the object store."""

    def get(self) -> T:
        from cluster.pool_worker import read

        value: T = read(self._name)
        return value


@contextlib.contextmanager
def ray_pool(
    workers: int,
    address: str | None = None,
    *,
    cpus_per_worker: float = 1.0,
    gpus_per_worker: float = 0.0,
    resources: Mapping[str, float] | None = None,
    waiting: tuple[Callable[[str], None], Callable[[], bool]] | None = None,
) -> Iterator[RayPool]:
    """A session and a pool in it: a Ray on this machine, or the cluster at `address`. Raises what both raise.

    waiting: what hears what is waited for until the cluster has room for one worker, and what tells whether to stop:
    then the pool is there all the same.
    """
    require_positive(workers)
    needs = {"CPU": cpus_per_worker, "GPU": gpus_per_worker, **(resources or {})}
    with session(address, workers * cpus_per_worker):
        _require_fit(needs)
        if waiting:
            wait_for_room(needs, *waiting)
        with RayPool(
            workers,
            cpus_per_worker=cpus_per_worker,
            gpus_per_worker=gpus_per_worker,
            resources=resources,
            start_timeout_s=START_TIMEOUT_S * patience(),
        ) as pool:
            yield pool


def _forget(shares: "dict[str, ray.ObjectRef[Any]]", name: str) -> None:
    from cluster.pool_worker import drop

    shares.pop(name, None)
    drop(name)


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
