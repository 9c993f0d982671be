"""FedNova (arXiv 2007.07481): updates are divided by how far local training can go, so that more steps are no more say.

A client's update is lr * sum_s(a_s g_s) over its steps, where a_s says how much a step's gradient counts in the end.
Clients send their update over |a|_1, the server moves by the weighted mean of those times that of |a|_1 (equation 8).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from core.errors import ConfigError
from core.models import checks
from core.optim.configs import SGD
from core.population.frame import Frame
from federated.exchange import UPDATE, Order, Pull, Reply, Total, Update, Vectors
from federated.strategies.averaging import Averaging
from federated.strategies.fedavgm import advance
from federated.strategies.fedprox import proximal


@dataclass(frozen=True)
class FedNova(Averaging):
    """momentum: that of the clients' SGD. mu: FedProx's pull, 0 for none. server_momentum: as FedAvgM's.

    With as many steps at every client it is FedAvg. Replies: "update" [D], its first P numbers divided by |a|_1, and
    "steps" [], |a|_1. server: "momentum" [P].
    """

    kind: Literal["fednova"] = "fednova"
    momentum: float = 0.0
    mu: float = 0.0
    server_lr: float = 1.0
    server_momentum: float = 0.0

    def __post_init__(self) -> None:
        checks.fraction("momentum", self.momentum)
        checks.at_least("mu", self.mu, 0)
        checks.positive("server_lr", self.server_lr)
        checks.fraction("server_momentum", self.server_momentum)

    def require_optimizer(self, optimizer: Any) -> None:
        """Raises ConfigError unless `momentum` is right for the clients' optimizer."""
        require_sgd(self.kind, self.momentum, optimizer)

    def begin(self, weights: Tensor, frame: Frame) -> Vectors:
        return {"momentum": torch.zeros(frame.trainable)}

    def pull(self, order: Order, mine: Vectors, frame: Frame) -> Pull | None:
        return proximal(self.mu, order, frame)

    def reply(self, update: Update, order: Order, mine: Vectors, frame: Frame) -> tuple[Reply, Vectors]:
        length = reach(update.steps, self.momentum, update.lr * self.mu)
        sent = update.delta.clone()
        if update.steps:  # a client without a step has not moved either
            sent[: frame.trainable] /= length
        payload = {UPDATE: sent, "steps": torch.tensor(length)}
        return Reply(update.client, float(update.examples), payload), {}

    def step(self, weights: Tensor, server: Vectors, total: Total, clients: int) -> tuple[Tensor, Vectors]:
        mean, old = total.mean(), server["momentum"].double()
        momentum = self.server_momentum * old + total.mean("steps") * mean[: len(old)]
        return advance(weights, mean, self.server_lr * momentum), {"momentum": momentum.float()}


@lru_cache(maxsize=1024)
def reach(steps: int, momentum: float, pull: float = 0.0) -> float:
    """|a|_1 of SGD (section 4.1): how many learning rates a constant gradient of 1 moves the weights in so many steps.

    pull: lr * mu. Plain SGD gives the number of steps; momentum and a pull have closed forms, but not together.
    """
    moved = velocity = 0.0
    for _ in range(steps):
        velocity = momentum * velocity + 1 - pull * moved
        moved += velocity
    return moved


def require_sgd(kind: str, momentum: float, optimizer: Any) -> None:
    """Raises ConfigError unless `optimizer` is SGD with this momentum, not Nesterov's: for others `reach` is wrong."""
    if not isinstance(optimizer, SGD):
        raise ConfigError(
            f"optimizer.kind: {kind} counts on the steps of sgd, got {optimizer.kind}; use optimizer.kind=sgd, or "
            "another strategy"
        )
    if optimizer.nesterov:
        raise ConfigError(f"optimizer.nesterov: must be false with {kind}, got true")
    if optimizer.momentum != momentum:
        raise ConfigError(
            f"strategy.momentum: must be that of the clients' optimizer, {optimizer.momentum}, got {momentum}"
        )
