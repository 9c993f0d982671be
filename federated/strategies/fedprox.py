"""FedProx (arXiv 1812.06127): clients are held near the weights that they were sent, however many steps they make."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from core.models import checks
from core.population.frame import Frame
from federated.exchange import Order, Pull, Total, Vectors
from federated.strategies.averaging import Averaging


@dataclass(frozen=True)
class FedProx(Averaging):
    """mu: a client's loss gains mu / 2 * |weights - the order's| ** 2 (equation 2). With mu 0 it is FedAvg.

    The server half is FedAvg's.
    """

    kind: Literal["fedprox"] = "fedprox"
    mu: float = 0.01

    def __post_init__(self) -> None:
        checks.at_least("mu", self.mu, 0)

    def pull(self, order: Order, mine: Vectors, frame: Frame) -> Pull | None:
        return proximal(self.mu, order, frame)

    def step(self, weights: Tensor, server: Vectors, total: Total, clients: int) -> tuple[Tensor, Vectors]:
        return (weights + total.mean()).float(), server


def proximal(mu: float, order: Order, frame: Frame) -> Pull | None:
    """The gradient of mu / 2 * |weights - the order's| ** 2."""
    return Pull(strength=mu, anchor=order.weights[: frame.trainable]) if mu > 0 else None
