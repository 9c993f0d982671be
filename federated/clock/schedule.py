"""Who trains when, on a virtual clock: planned before anything is trained.

How long a client takes is a pure function of its device, its number of examples and the bytes sent. So who takes part,
who is late, who fails, and with which round each reply counts follow from (seed, config) alone; the training of those
who do not count is never simulated.

for plan in Schedule(clients=1000, cohort=50, rounds=100, seed=0, work=examples_of).plans():
    ...                                  # train plan.jobs, and step once the replies that count in plan.round are there
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from core.errors import ConfigError
from federated.clock.devices import Devices, Fleet
from federated.clock.sampling import Ids, Mask, cohort, draw

Reason = Literal["dropped out", "too late", "not available"]


@dataclass(frozen=True)
class Asynchronous:
    """As FedBuff (arXiv 2106.06639): always `concurrency` clients at work, and a step after every `buffer` replies."""

    buffer: int
    concurrency: int


@dataclass(frozen=True)
class Job:
    """One client's work, from the weights of round `round` to a reply that counts in round `counts_in`.

    Their difference is its staleness. Seconds are on the virtual clock.
    """

    client: int
    round: int
    counts_in: int
    begins_s: float
    ends_s: float


@dataclass(frozen=True)
class Lost:
    """A client that was asked and does not count; at `ends_s` its reply was due, or given up at the deadline."""

    client: int
    reason: Reason
    begins_s: float
    ends_s: float


@dataclass(frozen=True)
class Plan:
    """One round, counted from 1.

    jobs: those that start with this round's weights and count in this or a later round, by time of arrival. lost: those
    that start with them in vain. arrivals: how many replies count in this round, from jobs of this and earlier rounds.
    """

    round: int
    jobs: tuple[Job, ...]
    lost: tuple[Lost, ...]
    begins_s: float
    ends_s: float
    arrivals: int


@dataclass(frozen=True)
class Schedule:
    """The plans of a run. `plans` may be asked any number of times and always says the same.

    cohort: replies that a round waits for, unless it is asynchronous. work: how many examples a client goes through in
    one round. bytes_down, bytes_up: of one order and one reply. devices: None: everybody replies, in no time.

    Raises ConfigError if there are too few clients for that.
    """

    clients: int
    cohort: int
    rounds: int
    seed: int
    work: Callable[[int], float]
    bytes_down: int = 0
    bytes_up: int = 0
    devices: Devices | None = None
    asynchronous: Asynchronous | None = None

    def __post_init__(self) -> None:
        counts = {"cohort": self.cohort}
        if self.asynchronous is not None:
            counts = {f"strategy.{name}": getattr(self.asynchronous, name) for name in ("buffer", "concurrency")}
            if self.devices is not None and self.devices.over_selection > 1:
                raise ConfigError(
                    "devices.over_selection: must be 1 where nobody is waited for (an asynchronous strategy), got "
                    f"{self.devices.over_selection}; raise strategy.concurrency instead"
                )
        for name, count in counts.items():
            if not 1 <= count <= self.clients:
                raise ConfigError(f"{name}: must be between 1 and the number of clients ({self.clients}), got {count}")

    def plans(self, start: int = 1) -> Iterator[Plan]:
        """The plans of rounds start..rounds in order; each is the same whatever `start` is.

        Synchronous: ceil(cohort * over_selection) of the available clients are asked at once, and the first `cohort`
        replies count. The round ends with the last of these; if fewer come, at the deadline, and without one when the
        last was due. Fewer are asked if fewer are available; if nobody is, the server waits until somebody is.

        Asynchronous: whenever a client replies, or its reply was due, another one starts with the newest weights, but
        none twice with the same. A round ends after `buffer` replies; with fewer, if nobody is at work and nobody is
        left to start with its weights. What would count after the last round is in no plan.
        """
        fleet = None if self.devices is None else Fleet(self.devices, self.seed)
        every = self._synchronous(fleet) if self.asynchronous is None else _Buffering(self, fleet).plans()
        return (plan for plan in every if plan.round >= start)

    def _synchronous(self, fleet: Fleet | None) -> Iterator[Plan]:
        now = 0.0
        for number in range(1, self.rounds + 1):
            begins, asked = now, self._asked(fleet, number, now)
            if fleet is not None and not asked:
                begins = fleet.opens_s(np.arange(self.clients), now)
                asked = self._asked(fleet, number, begins)
            attempts = self.attempts(fleet, asked, number, begins)
            came = sorted((a.ends_s, a.client) for a in attempts if a.lost is None)[: self.cohort]
            is_full = len(came) == min(self.cohort, len(asked))
            ends = came[-1][0] if is_full else self._given_up(attempts)
            counted = {client for _, client in came}
            lost = tuple(
                Lost(a.client, a.lost or "too late", a.begins_s, a.ends_s) for a in attempts if a.client not in counted
            )
            jobs = tuple(Job(client, number, number, begins, arrival) for arrival, client in came)
            yield Plan(number, jobs, lost, now, ends, len(jobs))
            now = ends

    def _asked(self, fleet: Fleet | None, number: int, at_s: float) -> tuple[int, ...]:
        """The clients of a synchronous round that begins then."""
        more = 1.0 if self.devices is None else self.devices.over_selection
        count = min(self.clients, math.ceil(self.cohort * more - 1e-9))  # 100 * 1.1 is a little above 110
        return cohort(self.seed, number, self.clients, count, None if fleet is None else _online(fleet, at_s))

    def _given_up(self, attempts: "list[Attempt]") -> float:
        """When the server of a synchronous round stops to wait for more replies."""
        deadline = None if self.devices is None else self.devices.deadline_s
        if deadline is not None:
            return attempts[0].begins_s + deadline
        return max(attempt.ends_s for attempt in attempts)

    def attempts(self, fleet: Fleet | None, ids: tuple[int, ...], number: int, at_s: float) -> "list[Attempt]":
        """What becomes of clients that start then with the weights of round `number`, in their order."""
        clients = np.array(ids, np.int64)
        if fleet is None or not ids:
            return [Attempt(client, number, at_s, at_s, None) for client in clients.tolist()]
        examples = np.array([self.work(client) for client in clients.tolist()], np.float64)
        takes = fleet.seconds(clients, number, examples, self.bytes_down, self.bytes_up)
        limit = math.inf if fleet.devices.deadline_s is None else fleet.devices.deadline_s
        results = []
        columns = (clients, takes, fleet.drops(clients, number), fleet.left_s(clients, at_s))
        for client, seconds, drops, left in zip(*(column.tolist() for column in columns), strict=True):
            lost: Reason | None = None
            if drops:
                lost = "dropped out"
            elif left < min(seconds, limit):
                lost = "not available"
            elif seconds > limit:
                lost = "too late"
            results.append(Attempt(client, number, at_s, at_s + min(seconds, limit), lost))
        return results


@dataclass(frozen=True)
class Attempt:
    """What becomes of a client that is asked: its reply, if it is not lost, is there at `ends_s`."""

    client: int
    round: int
    begins_s: float
    ends_s: float
    lost: Reason | None


def _online(fleet: Fleet, at_s: float) -> Callable[[Ids], Mask]:
    return lambda ids: fleet.left_s(ids, at_s) > 0


@dataclass
class _Draft:
    """The plan of a round while some of its jobs are still at work."""

    round: int
    begins_s: float
    ends_s: float = math.inf
    arrivals: int = 0
    at_work: int = 0
    jobs: list[Job] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)

    def finished(self) -> Plan:
        return Plan(self.round, tuple(self.jobs), tuple(self.lost), self.begins_s, self.ends_s, self.arrivals)


class _Buffering:
    """The events of an asynchronous run, one after the other."""

    def __init__(self, schedule: Schedule, fleet: Fleet | None) -> None:
        assert schedule.asynchronous is not None
        self.schedule, self.fleet, self.sizes = schedule, fleet, schedule.asynchronous
        self.now = 0.0
        self.draws = 0
        self.at_work: list[tuple[float, int, int, Attempt]] = []  # a heap by (end, round, client): the older first
        self.busy: set[int] = set()
        self.begun: set[int] = set()  # with the newest weights
        self.draft = _Draft(1, 0.0)  # of the current round, the last of `drafts`
        self.drafts = deque([self.draft])

    def plans(self) -> Iterator[Plan]:
        """A plan follows as soon as all that start in its round have ended."""
        while self.draft.round <= self.schedule.rounds:
            self._fill()
            if self.at_work:
                self._end(heapq.heappop(self.at_work)[-1])
            else:
                self._step()
            while self.drafts[0] is not self.draft and not self.drafts[0].at_work:
                yield self.drafts.popleft().finished()
        self.drafts.pop()
        yield from (draft.finished() for draft in self.drafts)

    def _fill(self) -> None:
        """Lets clients start until `concurrency` are at work; waits if otherwise nobody would be."""
        self._start()
        waiting = [] if self.at_work else [c for c in range(self.schedule.clients) if c not in self.begun]
        if waiting and self.fleet is not None:
            self.now = self.fleet.opens_s(np.array(waiting), self.now)
            self._start()

    def _start(self) -> None:
        free = self.sizes.concurrency - len(self.busy)
        if not free:
            return
        ids = draw(self.schedule.clients, free, self._can_start, self.schedule.seed, "start", self.draws)
        self.draws += 1
        for attempt in self.schedule.attempts(self.fleet, ids, self.draft.round, self.now):
            heapq.heappush(self.at_work, (attempt.ends_s, attempt.round, attempt.client, attempt))
        self.draft.at_work += len(ids)
        self.busy.update(ids)
        self.begun.update(ids)

    def _can_start(self, ids: Ids) -> Mask:
        free = np.array([client not in self.busy and client not in self.begun for client in ids.tolist()], np.bool_)
        return free if self.fleet is None else free & (self.fleet.left_s(ids, self.now) > 0)

    def _end(self, attempt: Attempt) -> None:
        self.now = attempt.ends_s
        self.busy.remove(attempt.client)
        draft = self.drafts[attempt.round - self.drafts[0].round]
        draft.at_work -= 1
        if attempt.lost is not None:
            draft.lost.append(Lost(attempt.client, attempt.lost, attempt.begins_s, attempt.ends_s))
            return
        number = self.draft.round
        draft.jobs.append(Job(attempt.client, attempt.round, number, attempt.begins_s, attempt.ends_s))
        self.draft.arrivals += 1
        if self.draft.arrivals == self.sizes.buffer:
            self._step()

    def _step(self) -> None:
        """The round ends; whoever starts from now on starts with newer weights."""
        self.draft.ends_s = self.now
        self.draft = _Draft(self.draft.round + 1, self.now)
        self.drafts.append(self.draft)
        self.begun.clear()
