"""One run of a `RayPool`: which item goes to which worker and when, what came back, and what a dead worker was doing.

Every item that is under way is one call to an actor, which executes its calls in order. Imported only while a session
is open.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import ray
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, RayError, WorkerCrashedError

from cluster.pool import Member, RayPool
from cluster.pool_send import line_of
from cluster.pool_worker import TooLarge
from core.errors import HanseError, ResourceError, WorkerError
from core.pool import Done, Failure, require_open

POLL_S = 0.2  # how soon a change of the pool's size is noticed while every worker is busy
GRACE_S = 0.2  # for items that a canceled run leaves behind to end by themselves, before their workers are replaced
DEPTH = 4  # items a worker has at most: more bring no more items a second
AHEAD_S = 0.01  # a worker gets more than one item ahead only while those it has take less
PLENTY = 2  # items for each worker that still wait: then one ahead costs nothing, whatever it takes
RECENT = 16  # results whose longest stands for an item that has never run
STRIKES = 2  # deaths in a row while the same item was executed
FAILED_STARTS = 3  # a worker, none of them good, before the run gives up
LOST = (RayActorError, WorkerCrashedError, NodeDiedError, OutOfMemoryError, ObjectLostError)


class Run:
    """The items of one call of `RayPool.run`, with the function in the object store."""

    def __init__(self, pool: RayPool, fn: "ray.ObjectRef[Any]", items: Mapping[Any, Any], order: list[Any]) -> None:
        self.pool, self.fn, self.items = pool, fn, items
        self.waiting = deque(order)
        self.joining: dict[ray.ObjectRef[Any], Member] = {}
        self.joined: list[Member] = []
        self.working: dict[ray.ObjectRef[Any], Member] = {}
        self.stale: dict[ray.ObjectRef[Any], Member] = {}  # calls whose items were given to another worker
        self.deaths: dict[Member, RayError] = {}  # of workers some of whose items may still have ended well
        self.suspects: set[Any] = set()  # items that were with a worker when it died: they run with none beside them
        self.strikes: dict[Any, int] = {}
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.failed_starts = 0

    def results(self) -> Iterator[Done[Any, Any]]:
        """Each item's result as it finishes. However it ends, nothing of the run goes on after it."""
        alone_since = time.monotonic()
        try:
            while self.waiting or self.working:
                require_open(self.pool.is_open)
                self._gather()
                self._feed()
                ready = _ready([*self.joining, *self.working], POLL_S)
                yield from self._take(ready)
                if not ready:
                    self._take_back()
                if self.joined:
                    alone_since = time.monotonic()
                elif time.monotonic() - alone_since > self.pool.start_timeout_s:
                    raise self._no_room()
        finally:
            self._cancel()

    def _gather(self) -> None:
        """Lets workers leave, and gives new ones the function."""
        self.pool.reconcile()
        for member in self.pool.members:
            if member.run is not self and not member.is_leaving:
                member.run = self
                self.joining[member.actor.begin.remote([self.fn])] = member
        self.joined = [member for member in self.joined if not member.is_leaving]

    def _feed(self) -> None:
        """Gives out waiting items: one to each worker that has none, then some ahead."""
        for depth in range(DEPTH):
            for member in self.joined:
                if not self.waiting:
                    return
                if len(member.queue) == depth and member not in self.deaths and self._has_room(member, depth):
                    self._submit(member, self.waiting.popleft())

    def _has_room(self, member: Member, depth: int) -> bool:
        """Whether a worker that has `depth` items gets one more. One that has none does; else, while there is plenty
        for all, one ahead, and more if it will be done with what it has in no time. Near the end nothing is given
        ahead: it would wait while another worker has nothing to do."""
        if not depth:
            return True
        keys = list(member.queue.values())
        if len(self.waiting) < len(self.joined) or member in self.stale.values():
            return False
        if not self.suspects.isdisjoint([*keys, self.waiting[0]]):
            return False
        if depth == 1 and len(self.waiting) >= PLENTY * len(self.joined):
            return True
        unknown = max(self.recent) if len(self.recent) == RECENT else AHEAD_S
        return sum(self.pool.times.of(key) or unknown for key in keys) < AHEAD_S

    def _submit(self, member: Member, key: Any) -> None:
        self.pool.synchronize(member)
        ref = member.actor.work.remote(self.items[key])
        member.queue[ref] = key
        self.working[ref] = member

    def _take_back(self) -> None:
        """An item that was given ahead, behind one that takes unexpectedly long, goes to a worker that has none. Ray
        cannot take a call back from an actor, so the first one may do it all the same; nobody looks at what it gives.
        """
        if self.waiting or all(member.queue for member in self.joined):
            return
        for member in self.joined:
            for ref in list(member.queue)[1:]:
                self.stale[ref] = self.working.pop(ref)
                self.waiting.append(member.queue.pop(ref))

    def _take(self, ready: "list[ray.ObjectRef[Any]]") -> Iterator[Done[Any, Any]]:
        """What came back; an error is raised after the results that came with it."""
        error: HanseError | None = None
        done = []
        for ref, outcome in zip(ready, _outcomes(ready), strict=True):
            if ref in self.joining:
                error = self._join(self.joining.pop(ref), outcome) or error
                continue
            member = self.working.pop(ref)
            if isinstance(outcome, LOST):
                if member not in self.deaths:
                    ray.kill(member.actor)  # it may merely be out of reach; its other items shall not run twice
                    self.deaths[member] = outcome
                continue
            key = member.queue.pop(ref)
            if isinstance(outcome, tuple):
                seconds, result = outcome
                done.append(Done(key, result, seconds, member.number))
                self._learn(key, seconds)
            else:
                error = self._failed(f"item {key}", member, outcome)
        for member in list(self.deaths):
            if not any(ref in self.working for ref in member.queue):
                error = self._bury(member, self.deaths.pop(member)) or error
        yield from done
        if error:
            raise error

    def _learn(self, key: Any, seconds: float) -> None:
        self.pool.times.learn(key, seconds)
        self.recent.append(seconds)
        self.strikes.pop(key, None)

    def _join(self, member: Member, outcome: Any) -> HanseError | None:
        """A worker has answered for the first time in this run, or has died before it could."""
        if isinstance(outcome, str):
            member.place, self.failed_starts = outcome, 0
            if not member.is_leaving:
                self.joined.append(member)
            return None
        if isinstance(outcome, Failure):
            return outcome.error(f"worker {member.number} cannot load the function")
        if member not in self.pool.members:  # it was let go while it was starting
            return None
        self._lose(member)
        self.failed_starts += not member.place  # one that was up before has died since, which is no failed start
        if self.failed_starts < FAILED_STARTS * self.pool.workers:
            return None
        return WorkerError(f"workers: {self.failed_starts} in a row died while starting: {line_of(outcome)}")

    def _failed(self, what: str, member: Member, outcome: Any) -> HanseError:
        """What to say of a result that is none."""
        where = f"worker {member.number} ({member.place})"
        if isinstance(outcome, Failure):
            return outcome.error(f"{what} failed on worker {member.number}")
        if isinstance(outcome, TooLarge):
            limit = self.pool.max_result_bytes
            return WorkerError(
                f"{what} gave a result of {outcome.size:,} bytes on {where}, more than max_result_bytes={limit:,}; "
                f"return less, or raise the limit"
            )
        return WorkerError(f"{what} or its result cannot be sent between here and {where}: {line_of(outcome)}")

    def _bury(self, member: Member, cause: RayError) -> HanseError | None:
        """A worker is dead and all that came from it has been taken. Its first unfinished item need not be the one that
        was being executed: what it sent last may be lost. So only an item that it had alone is blamed."""
        keys = list(member.queue.values())
        self._lose(member)
        self.waiting.extendleft(reversed(keys))
        if len(keys) > 1 or member in self.stale.values():
            self.suspects.update(keys)
            return None
        (executed,) = keys
        self.strikes[executed] = self.strikes.get(executed, 0) + 1
        if self.strikes[executed] < STRIKES:
            return None
        return WorkerError(
            f"item {executed} was being executed when its worker died, {STRIKES} times in a row; the last was worker "
            f"{member.number} ({member.place}): {line_of(cause)}"
        )

    def _lose(self, member: Member) -> None:
        """Takes a worker out of the pool, which starts another."""
        if member in self.joined:
            self.joined.remove(member)
        if member in self.pool.members:
            self.pool.end(member)

    def _no_room(self) -> ResourceError:
        free: Any = ray.available_resources()  # type: ignore[no-untyped-call]
        return ResourceError(
            f"workers: none could start within {self.pool.start_timeout_s:g} s; the cluster has "
            f"{free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs free; wait, or use smaller workers"
        )

    def _cancel(self) -> None:
        """Nothing of the run shall go on: what does not end by itself at once loses its worker."""
        if not self.pool.is_open:
            return
        calls = self.working | self.stale
        if calls:
            ray.wait(list(calls), num_returns=len(calls), timeout=GRACE_S)
            _, unfinished = ray.wait(list(calls), num_returns=len(calls), timeout=0)
            for member in {calls[ref] for ref in unfinished} | self.deaths.keys():
                self._lose(member)
        for member in self.pool.members:
            member.queue.clear()


def _ready(refs: "list[ray.ObjectRef[Any]]", timeout_s: float) -> "list[ray.ObjectRef[Any]]":
    """All that are there as soon as one is: asking for one at a time costs a search through all of them each."""
    ready, rest = ray.wait(refs, timeout=timeout_s)
    if ready and rest:
        ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
    return ready


def _outcomes(refs: "list[ray.ObjectRef[Any]]") -> list[Any]:
    """Their values, or the errors in place of them."""
    try:
        return list(ray.get(refs))
    except RayError:
        return [_outcome(ref) for ref in refs]


def _outcome(ref: "ray.ObjectRef[Any]") -> Any:
    try:
        return ray.get(ref)
    except RayError as error:
        return error
