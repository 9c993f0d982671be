"""What strategies share that withstand clients which send anything: they see every update, and each counts once."""

import hashlib
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import ConfigError, WorkerError
from core.population.frame import Frame
from federated.exchange import UPDATE, Order, Reply, Total, Update, Vectors
from federated.strategies.averaging import Averaging
from federated.strategies.robust.neighbors import mix


@dataclass(frozen=True)
class Robust(Averaging):
    """byzantine: how many of a round's replies (f) may be anything. mix_neighbors: each update is first averaged with
    its neighbors, see `neighbors.mix`. server_lr: how much of the combined update the server takes.

    Examples that clients say they have are ignored, as the number is theirs to choose. Equal replies in another order
    give the same bits. Updates must be finite: what is not is refused before it comes here.
    """

    kind: str = ""
    byzantine: int = 1
    mix_neighbors: bool = False
    server_lr: float = 1.0

    scales_buffers = True

    def __post_init__(self) -> None:
        if self.byzantine < 0:
            raise ValueError(f"byzantine must be 0 or more, got {self.byzantine}")
        if not self.server_lr > 0:
            raise ValueError(f"server_lr must be above 0, got {self.server_lr}")

    def needs(self) -> int:
        """The least number of replies with which the rule withstands `byzantine` of them."""
        return 2 * self.byzantine + 1

    @abstractmethod
    def rule(self, rows: Tensor, server: Vectors) -> Tensor:
        """One update [D] of `needs()` or more rows [n, D], which are in an order that only their content decides."""

    def require(self, cohort: int) -> None:
        """Raises ConfigError if the cohort is too small for the rule."""
        if cohort < self.needs():
            raise ConfigError(
                f"strategy.byzantine: {self.kind} needs {self.needs()} replies a round to withstand {self.byzantine}, "
                f"the cohort has {cohort}; enlarge the cohort or lower byzantine"
            )

    def reply(self, update: Update, order: Order, mine: Vectors, frame: Frame) -> tuple[Reply, Vectors]:
        return Reply(update.client, 1.0, {UPDATE: update.delta}), {}

    def combine(self, updates: Tensor, weights: Tensor, server: Vectors) -> Tensor:
        """One update, float32 [D], of updates [n, D]; `weights` are ignored. `server`: the server's vectors.

        Raises WorkerError if there are fewer than `needs()`.
        """
        if len(updates) < self.needs():
            raise WorkerError(
                f"strategy.{self.kind}: {len(updates)} replies came, {self.needs()} are needed to withstand "
                f"{self.byzantine}; skip the round"
            )
        rows = updates[by_content(updates)]
        if self.mix_neighbors:
            mix(rows, self.byzantine)
        return self.rule(rows, server).float()

    def step(self, weights: Tensor, server: Vectors, total: Total, clients: int) -> tuple[Tensor, Vectors]:
        """Moves by the combined update, which is all that `total` holds."""
        return (weights + self.server_lr * total.mean()).float(), server


def by_content(rows: Tensor) -> Tensor:
    """An order [n] of rows [n, D] that does not depend on where they stand: ties must not be won by a low number."""
    digests = [hashlib.blake2b(row.contiguous().numpy()).digest() for row in rows]
    return torch.tensor(sorted(range(len(rows)), key=digests.__getitem__))
