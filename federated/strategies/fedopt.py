"""FedAdagrad, FedYogi and FedAdam (arXiv 2003.00295, algorithm 2): the mean update is the server's gradient.

m = b1 m + (1 - b1) d;  v by the method;  weights += server_lr * m / (sqrt(v) + tau)

There is no bias correction, as in the paper, and v begins at tau ** 2. `tau` is how adaptive the server is: where the
updates are much smaller than tau it is plain momentum with server_lr / tau. server: "first" (m) and "second" (v), [P].
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from core.models import checks
from core.population.frame import Frame
from federated.exchange import Total, Vectors
from federated.strategies.averaging import Averaging
from federated.strategies.fedavgm import advance

Betas = tuple[float, float]
MOST_TAU = 1e9  # its square is a float32; far below it, too, the server is plain momentum


@dataclass(frozen=True)
class FedAdagrad(Averaging):
    """v = v + d ** 2. The paper's experiments use it without momentum, beta 0."""

    kind: Literal["fedadagrad"] = "fedadagrad"
    server_lr: float = 0.1
    beta: float = 0.0
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check(self.server_lr, self.tau)
        checks.fraction("beta", self.beta)

    def begin(self, weights: Tensor, frame: Frame) -> Vectors:
        return _begin(frame, self.tau)

    def step(self, weights: Tensor, server: Vectors, total: Total, clients: int) -> tuple[Tensor, Vectors]:
        mean, old = total.mean(), server["second"].double()
        second = old + mean[: len(old)].square()
        return _step(self, self.beta, weights, server["first"], mean, second)


@dataclass(frozen=True)
class FedYogi(Averaging):
    """v = v - (1 - b2) d ** 2 sign(v - d ** 2): v falls more slowly than Adam's after a large update."""

    kind: Literal["fedyogi"] = "fedyogi"
    server_lr: float = 0.01
    betas: Betas = (0.9, 0.99)
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check(self.server_lr, self.tau)
        _check_betas(self.betas)

    def begin(self, weights: Tensor, frame: Frame) -> Vectors:
        return _begin(frame, self.tau)

    def step(self, weights: Tensor, server: Vectors, total: Total, clients: int) -> tuple[Tensor, Vectors]:
        mean, old = total.mean(), server["second"].double()
        square = mean[: len(old)].square()
        second = old - (1 - self.betas[1]) * square * (old - square).sign()
        return _step(self, self.betas[0], weights, server["first"], mean, second)


@dataclass(frozen=True)
class FedAdam(Averaging):
    """v = b2 v + (1 - b2) d ** 2."""

    kind: Literal["fedadam"] = "fedadam"
    server_lr: float = 0.01
    betas: Betas = (0.9, 0.99)
    tau: float = 1e-3

    def __post_init__(self) -> None:
        _check(self.server_lr, self.tau)
        _check_betas(self.betas)

    def begin(self, weights: Tensor, frame: Frame) -> Vectors:
        return _begin(frame, self.tau)

    def step(self, weights: Tensor, server: Vectors, total: Total, clients: int) -> tuple[Tensor, Vectors]:
        mean, old = total.mean(), server["second"].double()
        second = self.betas[1] * old + (1 - self.betas[1]) * mean[: len(old)].square()
        return _step(self, self.betas[0], weights, server["first"], mean, second)


def _begin(frame: Frame, tau: float) -> Vectors:
    return {"first": torch.zeros(frame.trainable), "second": torch.full((frame.trainable,), tau**2)}


def _step(
    strategy: FedAdagrad | FedYogi | FedAdam, beta: float, weights: Tensor, first: Tensor, mean: Tensor, second: Tensor
) -> tuple[Tensor, Vectors]:
    """All but the second moment. weights, mean [D]; the moments [P]: the first is the old one, the second the new."""
    first = beta * first.double() + (1 - beta) * mean[: len(first)]
    move = strategy.server_lr * first / (second.sqrt() + strategy.tau)
    return advance(weights, mean, move), {"first": first.float(), "second": second.float()}


def _check(server_lr: float, tau: float) -> None:
    checks.positive("server_lr", server_lr)
    checks.positive("tau", tau)
    if tau > MOST_TAU:
        raise ValueError(f"tau must be at most {MOST_TAU:g}, got {tau:g}")


def _check_betas(betas: Betas) -> None:
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be in [0, 1), got {betas}")
