"""One run of a pool of processes: which item goes to which worker and when, what came back, and what a dead worker was
doing. Every item that is under way is one call to a worker, which executes its calls in order.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from core.errors import HanseError, ResourceError, WorkerError
from core.pool.crew import Call, Crew, Member
from core.pool.outcome import Lost, NotSent, TooLarge
from core.pool.protocol import Done, Failure, require_open

POLL_S = 0.2  # how soon a change of the pool's size is noticed while every worker is busy
GRACE_S = 0.2  # for items that a canceled run leaves behind to end by themselves, before their workers are replaced
DEPTH = 4  # items a worker has at most: more bring no more items a second
AHEAD_S = 0.01  # a worker gets an item ahead only while those it has take less
STRIKES = 2  # deaths in a row while the same item was executed
FAILED_STARTS = 3  # a worker, none of them good, before the run gives up


class Run:
    """The items of one call of a pool's `run`, with the function as it is sent."""

    def __init__(self, pool: Crew, fn: Any, items: Mapping[Any, Any], order: list[Any]) -> None:
        self.pool, self.fn, self.items = pool, fn, items
        self.waiting = deque(order)
        self.joining: dict[Call, Member] = {}
        self.joined: list[Member] = []
        self.working: dict[Call, Member] = {}
        self.stale: dict[Call, Member] = {}  # calls whose items were given to another worker
        self.deaths: dict[Member, Lost] = {}  # of workers some of whose items may still have ended well
        self.suspects: set[Any] = set()  # items that were with a worker when it died: they run with none beside them
        self.strikes: dict[Any, int] = {}
        self.failed_starts = 0

    def results(self) -> Iterator[Done[Any, Any]]:
        """Each item's result as it finishes. However it ends, nothing of the run goes on after it."""
        alone_since = time.monotonic()
        try:
            while self.waiting or self.working:
                require_open(self.pool.is_open)
                self._gather()
                self._feed()
                ready = self.pool.wait([*self.joining, *self.working], POLL_S)
                yield from self._take(ready)
                if not ready:
                    self._take_back()
                if self.joined:
                    alone_since = time.monotonic()
                elif time.monotonic() - alone_since > self.pool.start_timeout_s:
                    raise self._no_room()
        finally:
            self._cancel()
            self.fn, self.items = None, {}  # the members remember their last run

    def _gather(self) -> None:
        """Lets workers leave, and gives new ones the function."""
        self.pool.reconcile()
        for member in self.pool.members:
            if member.run is not self and not member.is_leaving:
                member.run = self
                self.joining[self.pool.begin(member, self.fn)] = member
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
        """Whether a worker that has `depth` items gets one more. One that has none does. Another one does while its
        items are known to be short: an item behind one of unknown length may have to run elsewhere, and would then run
        twice. Near the end nothing is given ahead: it would wait while another worker has nothing to do."""
        if not depth:
            return True
        keys = list(member.queue.values())
        if len(self.waiting) < self.pool.workers or member in self.stale.values():
            return False
        if not self.suspects.isdisjoint([*keys, self.waiting[0]]):
            return False
        seconds = [self.pool.times.of(key) for key in keys]
        return None not in seconds and sum(filter(None, seconds)) < AHEAD_S

    def _submit(self, member: Member, key: Any) -> None:
        call = self.pool.work(member, self.items[key])
        member.queue[call] = key
        self.working[call] = member

    def _take_back(self) -> None:
        """An item that was given ahead, behind one that takes longer than before, goes to a worker that has none. A
        call cannot be taken back, so the first one may do it all the same; nobody looks at what it gives.
        """
        if self.waiting or all(member.queue for member in self.joined):
            return
        for member in self.joined:
            for call in list(member.queue)[1:]:
                self.stale[call] = self.working.pop(call)
                self.waiting.append(member.queue.pop(call))

    def _take(self, ready: list[Call]) -> Iterator[Done[Any, Any]]:
        """What came back; an error is raised after the results that came with it."""
        error: HanseError | None = None
        done = []
        for call, outcome in zip(ready, self.pool.outcomes(ready), strict=True):
            if call in self.joining:
                error = self._join(self.joining.pop(call), outcome) or error
                continue
            member = self.working.pop(call)
            if isinstance(outcome, Lost):
                if member not in self.deaths:
                    self.pool.dismiss(member)  # it may merely be out of reach; its other items shall not run twice
                    self.deaths[member] = outcome
                continue
            key = member.queue.pop(call)
            if isinstance(outcome, tuple):
                seconds, result = outcome
                done.append(Done(key, result, seconds, member.number))
                self._learn(key, seconds)
            else:
                error = self._failed(f"item {key}", member, outcome)
        for member in list(self.deaths):
            if not any(call in self.working for call in member.queue):
                error = self._bury(member, self.deaths.pop(member)) or error
        yield from done
        if error:
            raise error

    def _learn(self, key: Any, seconds: float) -> None:
        self.pool.times.learn(key, seconds)
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
        return WorkerError(f"workers: {self.failed_starts} in a row died while starting: {_reason(outcome)}")

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
        return WorkerError(f"{what} or its result cannot be sent between here and {where}: {_reason(outcome)}")

    def _bury(self, member: Member, cause: Lost) -> HanseError | None:
        """A worker is dead and all that came from it has been taken. Its first unfinished item need not be the one that
        was being executed: what it sent last may be lost. So only an item that it had alone is blamed."""
        keys = list(member.queue.values())
        self._lose(member)
        self.waiting.extendleft(reversed(keys))
        if not cause.began:
            return None
        if len(keys) > 1 or member in self.stale.values():
            self.suspects.update(keys)
            return None
        (executed,) = keys
        self.strikes[executed] = self.strikes.get(executed, 0) + 1
        if self.strikes[executed] < STRIKES:
            return None
        return WorkerError(
            f"item {executed} was being executed when its worker died, {STRIKES} times in a row; the last was worker "
            f"{member.number} ({member.place}): {cause.reason}"
        )

    def _lose(self, member: Member) -> None:
        """Takes a worker out of the pool, which starts another."""
        if member in self.joined:
            self.joined.remove(member)
        if member in self.pool.members:
            self.pool.end(member)

    def _no_room(self) -> ResourceError:
        return ResourceError(
            f"workers: none could start within {self.pool.start_timeout_s:g} s; {self.pool.no_room()}; wait, or use "
            f"smaller workers"
        )

    def _cancel(self) -> None:
        """Nothing of the run shall go on: what does not end by itself at once loses its worker."""
        if not self.pool.is_open:
            return
        calls = self.working | self.stale
        for member in {calls[call] for call in self._unfinished(calls)} | self.deaths.keys():
            self._lose(member)
        for member in self.pool.members:
            member.queue.clear()

    def _unfinished(self, calls: Iterable[Call]) -> set[Call]:
        """Those that are not over after the time of grace."""
        left, deadline = set(calls), time.monotonic() + GRACE_S
        while left and (rest := deadline - time.monotonic()) > 0:
            left.difference_update(self.pool.wait(list(left), rest))
        return left


def _reason(outcome: Any) -> str:
    return outcome.reason if isinstance(outcome, Lost | NotSent) else str(outcome)
