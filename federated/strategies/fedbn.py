"""FedBN (arXiv 2102.07623): norm layers stay with the client, as they say how its own inputs are distributed."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from core.errors import ConfigError
from core.population.frame import Frame
from core.task import Task
from federated.exchange import Total, Vectors
from federated.strategies.averaging import Averaging

NORMS = (
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
)


@dataclass(frozen=True)
class FedBN(Averaging):
    """FedAvg of everything but the norm layers; the paper's are batch norm, here it is any kind.

    The site that trains a client does the rest: where `kept` is true it begins with the client's own numbers, sends 0,
    and keeps what came out. The server's stay at their first values, from which a new client begins.
    """

    kind: Literal["fedbn"] = "fedbn"
    is_stateful = True
    judges_own = True

    def kept(self, frame: Frame, task: Task) -> Tensor:
        """Which numbers of a vector stay with the client, bool [D]. Raises ConfigError if none does."""
        names = {
            f"{path}.{name}"
            for path, module in task.named_modules()
            if isinstance(module, NORMS)
            for name in (*dict(module.named_parameters(recurse=False)), *dict(module.named_buffers(recurse=False)))
        }
        kept = torch.zeros(frame.size, dtype=torch.bool)
        for place in frame.places:
            kept[place.start : place.end] = place.name in names
        if not kept.any():
            raise ConfigError(
                "strategy.kind: fedbn finds no norm layer that trains in this model; use fedavg, or a model with one, "
                "such as model.norm=group of a cnn"
            )
        return kept

    def step(self, weights: Tensor, server: Vectors, total: Total, clients: int) -> tuple[Tensor, Vectors]:
        return (weights + total.mean()).float(), server
