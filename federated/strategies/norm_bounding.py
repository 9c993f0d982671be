"""Norm bounding: no update is longer than a bound (arXiv 1911.07963, section 4)."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from core.population.frame import Frame
from federated.exchange import UPDATE, Order, Reply, Total, Update, Vectors
from federated.norm import l2_norm
from federated.strategies.averaging import Averaging


@dataclass(frozen=True)
class NormBounding(Averaging):
    """The mean of updates whose trainable part [P] is scaled down to an L2 norm of at most `bound`; batch statistics
    are left as they are. Each client counts once, so none moves the mean by more than bound / n.

    Replies stream: only their sum is kept. Both halves clip. A client does it so that the bound holds also where the
    server sees nothing but sums; the server does it again in `receive`, since a client may not have.
    """

    kind: Literal["norm_bounding"] = "norm_bounding"
    bound: float = 1.0
    server_lr: float = 1.0

    counts_once = True
    scales_buffers = True

    def __post_init__(self) -> None:
        for name in ("bound", "server_lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")

    def reply(self, update: Update, order: Order, mine: Vectors, frame: Frame) -> tuple[Reply, Vectors]:
        return self.receive(Reply(update.client, 1.0, {UPDATE: update.delta}), frame), {}

    def receive(self, reply: Reply, frame: Frame) -> Reply:
        """What the server may add up of a reply, whatever the client sent: a clipped update with weight 1."""
        payload = {**reply.payload, UPDATE: clipped(reply.payload[UPDATE], self.bound, frame.trainable)}
        return replace(reply, weight=1.0, payload=payload)

    def step(self, weights: Tensor, server: Vectors, total: Total, clients: int) -> tuple[Tensor, Vectors]:
        return (weights + self.server_lr * total.mean()).float(), server


def clipped(vector: Tensor, bound: float, trainable: int) -> Tensor:
    """The vector [D] with its first `trainable` numbers scaled so that their L2 norm is at most `bound`."""
    length = l2_norm(vector[:trainable])
    if length <= bound:
        return vector
    return torch.cat([vector[:trainable] * (bound / length), vector[trainable:]])
