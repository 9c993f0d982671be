"""Flower's own strategies over a Hanse recipe: the server's half is Flower's (`federated.flower.theirs`), unchanged."""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from core.population.frame import Frame
from federated.exchange import Order, Pull, Total, Vectors
from federated.strategies.averaging import Averaging
from federated.strategies.fedprox import proximal

PROXIMAL = "proximal-mu"  # Flower's name for the strength of FedProx, which it leaves to clients


@dataclass(frozen=True)
class Theirs(Averaging):
    """name: a class of `flwr.serverapp.strategy`, or `package.module:Class`; arguments: what it is called with.

    It decides who trains and who judges, by its `fraction_train` and `fraction_evaluate`, and sees whole weights.
    """

    kind: Literal["flower"] = "flower"
    name: str = "FedAvg"
    arguments: dict[str, bool | int | float | str] = field(default_factory=dict)

    def pull(self, order: Order, mine: Vectors, frame: Frame) -> Pull | None:
        mu = order.extra.get(PROXIMAL)
        return None if mu is None else proximal(float(mu), order, frame)

    def step(self, weights: Tensor, server: Vectors, total: Total, clients: int) -> tuple[Tensor, Vectors]:
        raise NotImplementedError("Flower's strategy makes this step")
