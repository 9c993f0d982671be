"""FedAvgM (arXiv 1909.06335): the mean update goes through a momentum at the server."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from core.models import checks
from core.population.frame import Frame
from federated.exchange import Total, Vectors
from federated.strategies.averaging import Averaging


@dataclass(frozen=True)
class FedAvgM(Averaging):
    """v = server_momentum * v + mean update; weights += server_lr * v (section 4.3, without Nesterov).

    server: "momentum" [P], v.
    """

    kind: Literal["fedavgm"] = "fedavgm"
    server_lr: float = 1.0
    server_momentum: float = 0.9

    def __post_init__(self) -> None:
        checks.positive("server_lr", self.server_lr)
        checks.fraction("server_momentum", self.server_momentum)

    def begin(self, weights: Tensor, frame: Frame) -> Vectors:
        return {"momentum": torch.zeros(frame.trainable)}

    def step(self, weights: Tensor, server: Vectors, total: Total, clients: int) -> tuple[Tensor, Vectors]:
        mean = total.mean()
        momentum = self.server_momentum * server["momentum"].double() + mean[: len(server["momentum"])]
        return advance(weights, mean, self.server_lr * momentum), {"momentum": momentum.float()}


def advance(weights: Tensor, mean: Tensor, move: Tensor) -> Tensor:
    """The next weights, float32 [D]: the trainable ones moved by `move` [P], the buffers by the mean update [D] alone.

    Buffers are measured, not learned: anything but a plain mean could make a running variance negative.
    """
    trainable = len(move)
    return torch.cat([weights[:trainable] + move, weights[trainable:] + mean[trainable:]]).float()
