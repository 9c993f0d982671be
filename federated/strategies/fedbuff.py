"""FedBuff (arXiv 2106.06639): nobody waits; the server moves whenever its buffer of updates is full."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from core.models import checks
from core.population.frame import Frame
from federated.exchange import UPDATE, Order, Reply, Total, Update, Vectors
from federated.strategies.averaging import Averaging
from federated.strategies.fedavgm import advance


@dataclass(frozen=True)
class FedBuff(Averaging):
    """buffer: replies that make a step, a round. concurrency: clients at work at any time.

    server_lr, server_momentum: as FedAvgM's. Every reply counts once, times 1 / sqrt(1 + staleness);
    the sum is divided by the number of replies (algorithm 1), so that a buffer of old updates moves the server less.
    server: "momentum" [P].
    """

    kind: Literal["fedbuff"] = "fedbuff"
    buffer: int = 10
    concurrency: int = 100
    server_lr: float = 1.0
    server_momentum: float = 0.0

    counts_once = True

    def __post_init__(self) -> None:
        checks.at_least("buffer", self.buffer, 1)
        checks.at_least("concurrency", self.concurrency, 1)
        checks.positive("server_lr", self.server_lr)
        checks.fraction("server_momentum", self.server_momentum)

    def begin(self, weights: Tensor, frame: Frame) -> Vectors:
        return {"momentum": torch.zeros(frame.trainable)}

    def reply(self, update: Update, order: Order, mine: Vectors, frame: Frame) -> tuple[Reply, Vectors]:
        return Reply(update.client, 1.0, {UPDATE: update.delta}), {}

    def discount(self, staleness: int) -> float:
        return float((1 + staleness) ** -0.5)

    def step(self, weights: Tensor, server: Vectors, total: Total, clients: int) -> tuple[Tensor, Vectors]:
        old = server["momentum"].double()
        momentum = self.server_momentum * old + total.sums[UPDATE][: len(old)] / total.count
        return advance(weights, total.mean(), self.server_lr * momentum), {"momentum": momentum.float()}
