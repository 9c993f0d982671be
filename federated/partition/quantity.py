"""Clients whose examples are alike, but more with some than with others (arXiv 2102.02079)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from core.data import Data
from core.data.split import Indices
from core.randomness import numpy_generator
from federated.partition.deal import by_shares, check_alpha
from federated.partition.partition import check_counts


@dataclass(frozen=True)
class Quantity:
    """Examples at random; the clients' shares of them are one draw of a symmetric Dirichlet distribution of alpha."""

    kind: Literal["quantity"] = "quantity"
    alpha: float = 0.5
    min_size: int = 1

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        check_counts(min_size=self.min_size)

    def owners(self, data: Data, clients: int, seed: int) -> Indices:
        count, draws = len(data.splits["train"]), numpy_generator(seed, "partition")
        owner = np.empty(count, np.int64)
        owner[draws.permutation(count)] = by_shares(draws.dirichlet(np.full(clients, self.alpha)), count, draws)
        return owner
