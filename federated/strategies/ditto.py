"""Ditto (arXiv 2012.04221): beside FedAvg's shared model every client trains its own, held near the shared one."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from core.models import checks
from core.population.frame import Frame
from federated.exchange import Order, Personal, Pull, Reply, Total, Update, Vectors
from federated.strategies.averaging import Averaging


@dataclass(frozen=True)
class Ditto(Averaging):
    """strength: the paper's lambda. The own model's loss gains strength / 2 * |its weights - the order's| ** 2.

    With 0 it is trained on the client's examples alone; the larger, the nearer it stays. The shared model knows nothing
    of it. A client keeps "personal" [D], which begins at the first weights that it is sent.
    """

    kind: Literal["ditto"] = "ditto"
    strength: float = 0.1
    is_stateful = True
    judges_own = True

    def __post_init__(self) -> None:
        checks.at_least("strength", self.strength, 0)

    def personal(self, order: Order, mine: Vectors) -> Personal | None:
        return Personal(mine.get("personal", order.weights), Pull(strength=self.strength, anchor=order.weights))

    def reply(self, update: Update, order: Order, mine: Vectors, frame: Frame) -> tuple[Reply, Vectors]:
        reply, _ = super().reply(update, order, mine, frame)
        return reply, mine

    def step(self, weights: Tensor, server: Vectors, total: Total, clients: int) -> tuple[Tensor, Vectors]:
        return (weights + total.mean()).float(), server
