"""q-FedAvg (arXiv 1905.10497, algorithm 2): clients with a large loss count more, so that accuracies are more alike."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from core.models import checks
from core.population.frame import Frame
from federated.exchange import UPDATE, Order, Reply, Total, Update, Vectors
from federated.strategies.averaging import Averaging

SMALLEST = 1e-10  # of a loss, as in the authors' program: loss ** (q - 1) has no value at 0


@dataclass(frozen=True)
class QFedAvg(Averaging):
    """q: 0 is FedAvg with every client counting once; the larger, the more even. L is 1 / lr of the clients.

    weights -= sum_k Delta_k / sum_k h_k with Delta_k = F_k ** q * L (w - w_k) and
    h_k = q F_k ** (q - 1) |L (w - w_k)| ** 2 + L F_k ** q, where F_k is the client's loss under the order's weights.
    Replies: "update" [D], -Delta_k / L in its first P numbers, and "h" [], h_k / L. Buffers move by their mean with
    the weights h_k: they are multiplied by them at the client, as the server divides all of them.
    """

    kind: Literal["qfedavg"] = "qfedavg"
    q: float = 0.1
    measures_before = True
    counts_once = True

    def __post_init__(self) -> None:
        checks.at_least("q", self.q, 0)

    def reply(self, update: Update, order: Order, mine: Vectors, frame: Frame) -> tuple[Reply, Vectors]:
        assert update.before is not None, "measures_before asks for it"
        # a tensor, as a float's power raises an error where it is too large
        loss = torch.tensor(update.before, dtype=torch.float64).clamp(min=SMALLEST)
        trained, measured = update.delta.double().tensor_split([frame.trainable])
        factor = loss**self.q
        h = self.q * loss ** (self.q - 1) * trained.square().sum() / update.lr + factor
        sent = torch.cat([factor * trained, h * measured]).float()
        return Reply(update.client, 1.0, {UPDATE: sent, "h": h.float()}), {}

    def step(self, weights: Tensor, server: Vectors, total: Total, clients: int) -> tuple[Tensor, Vectors]:
        h = total.mean("h").clamp(min=torch.finfo(torch.float32).tiny)  # 0 where all have learned everything
        return (weights + total.mean() / h).float(), server
