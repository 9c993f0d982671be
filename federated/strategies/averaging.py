"""What most strategies do: clients train plainly and send their update, which counts with their number of examples."""

from abc import ABC, abstractmethod
from dataclasses import replace

from torch import Tensor

from core.population.frame import Frame
from federated.exchange import UPDATE, Order, Personal, Pull, Reply, Total, Update, Vectors


class Averaging(ABC):
    """The defaults of a `federated.exchange.Strategy`; a strategy says what it does otherwise."""

    is_stateful = False
    measures_before = False
    judges_own = False  # whether clients judge with what they keep
    scales_buffers = False  # whether server_lr scales batch statistics as it scales weights
    counts_once = False  # whether every reply has the weight 1, whatever its client says

    def require(self, cohort: int) -> None:  # noqa: B027 - what most of them say
        """Any number of replies will do."""

    def begin(self, weights: Tensor, frame: Frame) -> Vectors:
        """The server remembers nothing."""
        return {}

    def extra(self, server: Vectors) -> Vectors:
        """Clients are sent nothing but the weights."""
        return {}

    def pull(self, order: Order, mine: Vectors, frame: Frame) -> Pull | None:
        """Gradients stay as they are."""
        return None

    def personal(self, order: Order, mine: Vectors) -> Personal | None:
        """There is the shared model only."""
        return None

    def reply(self, update: Update, order: Order, mine: Vectors, frame: Frame) -> tuple[Reply, Vectors]:
        """The update, with the number of examples as its weight."""
        return Reply(update.client, float(update.examples), {UPDATE: update.delta}), {}

    def receive(self, reply: Reply, frame: Frame) -> Reply:
        """The reply as it is, with the weight 1 where all count once."""
        return replace(reply, weight=1.0) if self.counts_once else reply

    def discount(self, staleness: int) -> float:
        """What a reply counts that was trained on weights `staleness` rounds old."""
        return 1.0

    @abstractmethod
    def step(self, weights: Tensor, server: Vectors, total: Total, clients: int) -> tuple[Tensor, Vectors]:
        """The server's next weights [D] and vectors."""
