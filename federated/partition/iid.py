"""Every client's examples are drawn alike."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from core.data import Data
from core.data.split import Indices
from core.randomness import numpy_generator
from federated.partition.deal import even
from federated.partition.partition import check_counts


@dataclass(frozen=True)
class IID:
    """Examples at random; sizes differ by one at most."""

    kind: Literal["iid"] = "iid"
    min_size: int = 1

    def __post_init__(self) -> None:
        check_counts(min_size=self.min_size)

    def owners(self, data: Data, clients: int, seed: int) -> Indices:
        return dealt_evenly(len(data.splits["train"]), clients, seed)


def dealt_evenly(count: int, clients: int, seed: int) -> Indices:
    """[count]: owners at random, with equal sizes or nearly so."""
    owner = np.empty(count, np.int64)
    owner[numpy_generator(seed, "partition").permutation(count)] = even(count, clients)
    return owner
