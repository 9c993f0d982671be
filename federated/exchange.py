"""What a server and its clients send each other, and what the two parts that shape it must be able to do.

A model travels as one vector [D] of float32 (`core.population.frame`): its P trainable numbers first, then its
floating-point buffers. A *strategy* says what clients compute beyond plain training, what they send, and how the server
moves; a *transform* changes what is sent on its way, and has a client half and a server half.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from core.population.frame import Frame

Vectors = dict[str, Tensor]  # by name: float32 [D], or [] for a single number
UPDATE = "update"  # the name of what every strategy sends: the change of the weights, or something like it


@dataclass(frozen=True)
class Order:
    """What the server sends to every client of a round, counted from 1: weights [D] and the strategy's own vectors."""

    round: int
    weights: Tensor
    extra: Vectors = field(default_factory=dict)


@dataclass(frozen=True)
class Update:
    """What a client's training gave: `delta` [D], its new weights minus the order's.

    steps: optimizer steps made; loss: the mean of theirs; before: the mean loss over its examples under the order's
    weights, where the strategy asks for it.
    """

    client: int
    delta: Tensor
    examples: int
    steps: int
    loss: float
    lr: float
    before: float | None = None


@dataclass(frozen=True)
class Reply:
    """What a client sends: named tensors, and the weight with which they count. Transforms may change both."""

    client: int
    weight: float
    payload: dict[str, Tensor]

    @property
    def size_bytes(self) -> int:
        """What goes over the wire, without the names around it."""
        return sum(tensor.nbytes for tensor in self.payload.values())


class Total:
    """Sums over replies, in float64: sum(weight * vector) by name, sum(weight), and how many. Totals add."""

    def __init__(self) -> None:
        self.sums: Vectors = {}
        self.weight = 0.0
        self.count = 0

    def add(self, reply: Reply) -> None:
        """Takes a reply in."""
        for name, vector in reply.payload.items():
            if name not in self.sums:
                self.sums[name] = torch.zeros(vector.shape, dtype=torch.float64)
            self.sums[name].add_(vector, alpha=reply.weight)
        self.weight += reply.weight
        self.count += 1

    def merge(self, other: "Total") -> "Total":
        """Both together, in this order; `other` must not be used afterwards."""
        for name, vector in other.sums.items():
            if name in self.sums:
                self.sums[name] += vector
            else:
                self.sums[name] = vector
        self.weight += other.weight
        self.count += other.count
        return self

    def mean(self, name: str = UPDATE) -> Tensor:
        """The weighted mean of a vector, float64 [D] or []. Ask for it only if there is a weight."""
        return self.sums[name] / self.weight


@dataclass(frozen=True)
class Pull:
    """What local training adds to each gradient [P]: strength * (weights - anchor) + shift; vectors [P] or absent."""

    strength: float = 0.0
    anchor: Tensor | None = None
    shift: Tensor | None = None


@dataclass(frozen=True)
class Personal:
    """A model of the client's own, trained after the shared one: from `start` [D], pulled as said."""

    start: Tensor
    pull: Pull


class Strategy(Protocol):
    """The two halves of an algorithm. A frozen dataclass whose fields are its numbers in a config; see `fedavg.py`.

    server: the server's own vectors, which are saved with its weights. mine: a client's own, which it keeps from round
    to round; empty when it takes part for the first time.
    """

    @property
    def kind(self) -> str: ...

    @property
    def is_stateful(self) -> bool:
        """Whether clients keep vectors from round to round."""
        ...

    @property
    def measures_before(self) -> bool:
        """Whether clients measure the loss of the weights that they are sent."""
        ...

    @property
    def judges_own(self) -> bool:
        """Whether clients judge with what they keep, such as a model of their own."""
        ...

    @property
    def counts_once(self) -> bool:
        """Whether every reply has the weight 1."""
        ...

    def require(self, cohort: int) -> None:
        """Raises ConfigError if the strategy cannot work with so many replies a round."""

    def begin(self, weights: Tensor, frame: Frame) -> Vectors:
        """The server's vectors before the first round, given the first weights [D]."""
        ...

    def extra(self, server: Vectors) -> Vectors:
        """What clients are sent beside the weights."""
        ...

    def pull(self, order: Order, mine: Vectors, frame: Frame) -> Pull | None:
        """What local training adds to the gradients."""
        ...

    def personal(self, order: Order, mine: Vectors) -> Personal | None:
        """The model of the client's own, if the strategy trains one; it is kept in `mine` under "personal"."""
        ...

    def reply(self, update: Update, order: Order, mine: Vectors, frame: Frame) -> tuple[Reply, Vectors]:
        """What the client sends, and what it keeps from now on."""
        ...

    def receive(self, reply: Reply, frame: Frame) -> Reply:
        """What the server makes of a good reply before it adds it up: its own half of what `reply` should have done."""
        ...

    def discount(self, staleness: int) -> float:
        """The factor on the weight of a reply that was trained on weights `staleness` rounds old."""
        ...

    def step(self, weights: Tensor, server: Vectors, total: Total, clients: int) -> tuple[Tensor, Vectors]:
        """The server's next weights [D] and vectors. `clients`: how many there are in all."""
        ...


class Collecting(Strategy, Protocol):
    """A strategy that must see every reply by itself: it makes one update of all, and `step` goes on with that."""

    def needs(self) -> int:
        """With fewer replies there is no update."""
        ...

    def combine(self, updates: Tensor, weights: Tensor, server: Vectors) -> Tensor:
        """One update [D] of all updates [n, D] (float32) with the weights [n] (float64, above 0)."""
        ...


class Transform(Protocol):
    """One change on the way from client to server. A frozen dataclass whose fields are its numbers in a config.

    Client halves run in the order of the config's list, server halves in the reverse order. What a client half adds or
    replaces in the payload its server half must turn back into vectors of the same names.
    """

    @property
    def kind(self) -> str: ...

    @property
    def is_stateful(self) -> bool:
        """Whether the client half keeps something from round to round, such as the error of a compression."""
        ...

    def client(self, reply: Reply, mine: Vectors, frame: Frame, *key: Any) -> tuple[Reply, Vectors]:
        """The reply as it is sent, and what the client keeps of this transform. `key` addresses its random draws."""
        ...

    def server(self, reply: Reply, frame: Frame) -> Reply:
        """The reply as the server reads it. Raises ValueError with a few words if it cannot be what `client` sent."""
        ...


def collects(strategy: Strategy) -> bool:
    """Whether the strategy must see every reply by itself."""
    return hasattr(strategy, "combine")


def stacked(replies: list[Reply]) -> tuple[Tensor, Tensor]:
    """Updates [n, D] and weights [n] (float64) of replies."""
    updates = torch.stack([reply.payload[UPDATE] for reply in replies])
    return updates, torch.tensor([reply.weight for reply in replies], dtype=torch.float64)
