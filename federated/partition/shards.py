"""The partition of the first paper on federated averaging (arXiv 1602.05629)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from core.data import Data
from core.data.split import Indices
from core.errors import ConfigError
from core.randomness import numpy_generator
from federated.partition.deal import by_label, even
from federated.partition.partition import check_counts
from federated.partition.view import labels_of


@dataclass(frozen=True)
class Shards:
    """Examples sorted by label and cut into clients * per_client shards of equal size; each client gets `per_client`.

    Real targets are sorted by their quantile bins.
    """

    kind: Literal["shards"] = "shards"
    per_client: int = 2
    min_size: int = 1

    def __post_init__(self) -> None:
        check_counts(per_client=self.per_client, min_size=self.min_size)

    def owners(self, data: Data, clients: int, seed: int) -> Indices:
        labels, draws, shards = (
            labels_of(data, self.kind),
            numpy_generator(seed, "partition"),
            clients * self.per_client,
        )
        if shards > len(labels):
            raise ConfigError(
                f"partition.per_client: {clients} clients of {self.per_client} shards need {shards} training "
                f"examples, there are {len(labels)}; lower it, or clients"
            )
        owner = np.empty(len(labels), np.int64)
        of_shard = draws.permutation(shards) // self.per_client
        owner[by_label(labels, draws)] = of_shard[even(len(labels), shards)]
        return owner
