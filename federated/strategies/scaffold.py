"""SCAFFOLD (arXiv 1910.06378): control variates take out of each client's gradients what is its own.

A client's gradients are shifted by c - c_i: c_i estimates its own gradient, c everybody's. Clients keep c_i, so it is
for clients that come again.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from core.models import checks
from core.population.frame import Frame
from federated.exchange import UPDATE, Order, Pull, Reply, Total, Update, Vectors
from federated.strategies.averaging import Averaging
from federated.strategies.fedavgm import advance
from federated.strategies.fednova import reach, require_sgd

CONTROL = "control"


@dataclass(frozen=True)
class Scaffold(Averaging):
    """server_lr: how much of the mean update the server takes. momentum: that of the clients' SGD.

    c_i+ = c_i - c + (x - y_i) / (K lr), option II of algorithm 1; with momentum K is FedNova's |a|_1, so that c_i+ is
    still a mean of gradients. Every reply counts once. Replies: "update" [D] and "control" [D], c_i+ - c_i and then 0.
    server and orders: "control" [P], c. A client keeps "control" [P], c_i, which is 0 before its first time.
    """

    kind: Literal["scaffold"] = "scaffold"
    server_lr: float = 1.0
    momentum: float = 0.0
    is_stateful = True
    counts_once = True

    def __post_init__(self) -> None:
        checks.positive("server_lr", self.server_lr)
        checks.fraction("momentum", self.momentum)

    def require_optimizer(self, optimizer: Any) -> None:
        """Raises ConfigError unless `momentum` is right for the clients' optimizer."""
        require_sgd(self.kind, self.momentum, optimizer)

    def begin(self, weights: Tensor, frame: Frame) -> Vectors:
        return {CONTROL: torch.zeros(frame.trainable)}

    def extra(self, server: Vectors) -> Vectors:
        return server

    def pull(self, order: Order, mine: Vectors, frame: Frame) -> Pull | None:
        common = order.extra[CONTROL]
        return Pull(shift=common - mine[CONTROL] if mine else common)

    def reply(self, update: Update, order: Order, mine: Vectors, frame: Frame) -> tuple[Reply, Vectors]:
        common = order.extra[CONTROL]
        own = mine.get(CONTROL, torch.zeros_like(common))
        new = own
        if update.steps:  # a client without a step has seen no gradient
            length = reach(update.steps, self.momentum)
            new = own - common - update.delta[: frame.trainable] / (length * update.lr)
        change = torch.zeros_like(update.delta)
        change[: frame.trainable] = new - own
        return Reply(update.client, 1.0, {UPDATE: update.delta, CONTROL: change}), {CONTROL: new}

    def step(self, weights: Tensor, server: Vectors, total: Total, clients: int) -> tuple[Tensor, Vectors]:
        mean, old = total.mean(), server[CONTROL].double()
        control = old + total.count / clients * total.mean(CONTROL)[: len(old)]
        return advance(weights, mean, self.server_lr * mean[: len(old)]), {CONTROL: control.float()}
