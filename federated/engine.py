"""Who does the clients' work: the one thing in which ways of running a federation differ."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol, TypeVar

from core.pool import WorkerPool
from federated.exchange import Order
from federated.intake import Partial, Work
from federated.site import Judged, Setting, judge_chunk, train_chunk

Chunks = Mapping[int, Sequence[Work]]
T = TypeVar("T", Partial, Judged)


class Engine(Protocol):
    """Trains and judges chunks of clients; results come in any order, each once, with their chunk's number."""

    def train(self, order: Order, chunks: Chunks) -> Iterator[tuple[int, Partial]]:
        """One round's training."""
        ...

    def judge(self, order: Order, chunks: Chunks) -> Iterator[tuple[int, Judged]]:
        """Held-out examples, judged by the order's weights and the clients' own."""
        ...


class PoolEngine:
    """Over a pool of workers, or with a `LocalPool` in this process. What they need to know is sent once."""

    def __init__(self, pool: WorkerPool, setting: Setting) -> None:
        self.pool = pool
        self.setting = pool.share(setting)

    def train(self, order: Order, chunks: Chunks) -> Iterator[tuple[int, Partial]]:
        shared = self.pool.share(order)
        try:
            for done in self.pool.run(partial(train_chunk, self.setting, shared), chunks):
                yield done.key, done.result
        finally:
            shared.release()

    def judge(self, order: Order, chunks: Chunks) -> Iterator[tuple[int, Judged]]:
        shared = self.pool.share(order)
        try:
            for done in self.pool.run(partial(judge_chunk, self.setting, shared), chunks):
                yield done.key, done.result
        finally:
            shared.release()
