"""Which training examples each client has, as one order with a stretch per client; and what a partition must say."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from core.data import Data
from core.data.split import Indices


@dataclass(frozen=True)
class Partition:
    """Client c has the training examples order[offsets[c] : offsets[c + 1]].

    order: int64 [N], positions in `splits["train"].addresses(seed, None)`, each once; offsets: int64 [clients + 1];
    noise: float32 [clients], the standard deviation of what is added to a client's inputs; None adds nothing.
    """

    order: Tensor
    offsets: Tensor
    noise: Tensor | None = None

    @classmethod
    def of(cls, owner: Indices, clients: int, noise: Tensor | None = None) -> "Partition":
        """From the owner [N] of each example. A client's examples keep their order."""
        offsets = np.concatenate([[0], np.bincount(owner, minlength=clients).cumsum()])
        return cls(torch.from_numpy(np.argsort(owner, kind="stable")), torch.from_numpy(offsets), noise)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> Tensor:
        """int64 [clients]."""
        return self.offsets.diff()

    @property
    def owner(self) -> Tensor:
        """int64 [N]: the client of each training example."""
        owner = torch.empty_like(self.order)
        owner[self.order] = torch.arange(len(self)).repeat_interleave(self.sizes)
        return owner

    def rows(self, client: int) -> Tensor:
        """int64 [n]: the positions of a client's examples; a view."""
        start, end = self.offsets[client : client + 2].tolist()
        return self.order[start:end]


class Dealing(Protocol):
    """A way of partitioning: a frozen dataclass whose fields are its numbers in a config.

    min_size: the smallest number of examples that a client gets.
    """

    @property
    def kind(self) -> str: ...

    @property
    def min_size(self) -> int: ...

    def owners(self, data: Data, clients: int, seed: int) -> Indices:
        """int64 [N]: the client of each training example. ConfigError if the data does not go with this kind."""
        ...


def check_counts(**counts: int) -> None:
    """Raises ValueError for one below 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")
