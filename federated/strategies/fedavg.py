"""FedAvg (arXiv 1602.05629): the server moves by the mean of the clients' updates, weighted by their examples."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from federated.exchange import Total, Vectors
from federated.strategies.averaging import Averaging


@dataclass(frozen=True)
class FedAvg(Averaging):
    """server_lr: how much of the mean update the server takes."""

    kind: Literal["fedavg"] = "fedavg"
    server_lr: float = 1.0

    scales_buffers = True

    def __post_init__(self) -> None:
        if not self.server_lr > 0:
            raise ValueError(f"server_lr must be above 0, got {self.server_lr}")

    def step(self, weights: Tensor, server: Vectors, total: Total, clients: int) -> tuple[Tensor, Vectors]:
        return (weights + self.server_lr * total.mean()).float(), server
