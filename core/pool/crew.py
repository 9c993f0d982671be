"""A pool whose workers are processes of their own: who is in it, and who comes and goes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from core.errors import ConfigError
from core.pool.outcome import Outcome
from core.pool.protocol import Done, K, Shared, require_alone, require_open
from core.pool.times import ItemTimes

T = TypeVar("T")
R = TypeVar("R")
Call = Any  # what stands for something that a worker was told to do; hashable


@dataclass(eq=False)
class Member:
    """One worker as its pool sees it: `queue` are its unfinished items in order."""

    number: int
    hand: Any  # what the pool reaches it by
    place: str = ""  # its process and machine, once it is up
    queue: dict[Call, Any] = field(default_factory=dict)
    run: object = None  # the run whose function it was sent
    is_leaving: bool = False


class Crew(ABC):
    """What pools of processes have in common; see `core.pool.WorkerPool` for what they promise.

    The workers start at once, side by side, and a run begins with the first that is up. An item whose worker dies runs
    again; if it was certainly being executed (no other was with the worker) twice in a row, the run ends with a
    WorkerError. So an item may run more than once where a worker dies, and where one was given to a worker ahead and
    the one before it takes much longer than it did in an earlier run; its result counts once.

    A result that cannot be sent, or whose tensors, arrays and strings take more than `max_result_bytes`, is a
    WorkerError. Tensors in shared values and results arrive detached and on the CPU. A shared value is not copied: its
    tensors must not be written to, and its arrays arrive read-only.
    """

    def __init__(self, workers: int, max_result_bytes: int, start_timeout_s: float) -> None:
        require_positive(workers)
        self.max_result_bytes, self.start_timeout_s = max_result_bytes, start_timeout_s
        self.times = ItemTimes()
        self.members: list[Member] = []
        self._target, self._started, self._is_running = workers, 0, False
        self.is_open = True

    # --- what a kind of pool does in its own way -------------------------------------------------------------------

    @abstractmethod
    def hire(self, number: int) -> Member:
        """Starts a worker."""

    @abstractmethod
    def dismiss(self, member: Member) -> None:
        """Ends a worker, whatever it is doing; it may be dead."""

    @abstractmethod
    def share(self, value: T) -> Shared[T]:
        """See `core.pool.WorkerPool.share`."""

    @abstractmethod
    def packed(self, fn: Callable[[Any], Any]) -> Any:
        """A function as it is sent. ConfigError if it cannot be."""

    @abstractmethod
    def require_sendable(self, items: Mapping[Any, Any]) -> None:
        """ConfigError if an item cannot be sent."""

    @abstractmethod
    def begin(self, member: Member, function: Any) -> Call:
        """Tells a worker to load a run's function. It answers with where it is."""

    @abstractmethod
    def work(self, member: Member, item: Any) -> Call:
        """Gives a worker an item, behind those that it has."""

    @abstractmethod
    def wait(self, calls: Sequence[Call], timeout_s: float) -> list[Call]:
        """Those that are over, as soon as one is."""

    @abstractmethod
    def outcomes(self, calls: Sequence[Call]) -> list[Outcome | str]:
        """What calls gave that are over; the text of one that began."""

    @abstractmethod
    def no_room(self) -> str:
        """Why no worker starts."""

    # --- what all do alike -----------------------------------------------------------------------------------------

    @property
    def workers(self) -> int:
        """How many there are; one that is starting, or being replaced, counts."""
        return self._target

    def resize(self, workers: int) -> None:
        """Starts workers, or lets some leave when they have finished their item. May be called during a run, also from
        another thread, which the run notices within a fraction of a second."""
        require_open(self.is_open)
        require_positive(workers)
        self._target = workers
        if not self._is_running:
            self.reconcile()

    def run(
        self, fn: Callable[[T], R], items: Mapping[K, T], cost: Mapping[K, float] | None = None
    ) -> Iterator[Done[K, R]]:
        """See `core.pool.WorkerPool.run`. Only a few items a worker are under way at any time: one, or a few while
        they are known to take milliseconds, so that no worker waits for its next."""
        require_open(self.is_open)
        function = self.packed(fn)
        self.require_sendable(items)
        return self._results(fn, function, items, self.times.longest_first(items, cost or {}))

    def _results(self, fn: Any, function: Any, items: Mapping[K, T], order: list[K]) -> Iterator[Done[K, Any]]:
        """`fn` is only kept: the shared values that are bound to it shall live as long as its run."""
        from core.pool.run import Run

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
            self.members.append(self.hire(self._started))
            self._started += 1
        if len(staying) > self._target:
            idle_first = sorted(staying, key=lambda member: len(member.queue))
            for member in idle_first[: len(staying) - self._target]:
                member.is_leaving = True
        for member in [m for m in self.members if m.is_leaving and not m.queue]:
            self.end(member)

    def end(self, member: Member) -> None:
        """Ends a worker, whatever it is doing."""
        self.members.remove(member)
        self.dismiss(member)

    def close(self) -> None:
        """Ends the workers at once, also in the middle of a run; a second call does nothing."""
        self.is_open = False
        for member in list(self.members):
            self.end(member)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


def require_positive(workers: int) -> None:
    """Refuses a pool without workers."""
    if workers < 1:
        raise ConfigError(f"workers: there must be at least one, not {workers}")
