"""The natural partition: who wrote it has it. Examples with the same value of a column belong to one client."""

import heapq
from dataclasses import dataclass
from typing import Literal

import numpy as np

from core.data import Data, DataConfig
from core.data.split import Indices
from core.errors import ConfigError
from federated.partition.partition import check_counts
from federated.partition.view import ids_of


@dataclass(frozen=True)
class Column:
    """A client per value, in the order of the values; where fewer clients are asked for, each has several values.

    column: of a table, its name; of text `document` (null is the same), `folder` (the top one) or a key of a jsonl
    file. A window of text goes to the client of its middle token, so parts of a window at a border are a neighbor's.
    """

    kind: Literal["column"] = "column"
    column: str | None = None
    min_size: int = 1

    def __post_init__(self) -> None:
        check_counts(min_size=self.min_size)

    def owners(self, data: Data, source: DataConfig, clients: int | None) -> Indices:
        """int64 [N]: the client of each training example; clients None makes one of each value.

        Raises ConfigError for more clients than values, or a client of fewer than `min_size` examples.
        """
        values, group, sizes = np.unique(ids_of(data, source, self.column), return_inverse=True, return_counts=True)
        if clients is not None and clients > len(values):
            raise ConfigError(
                f"clients: {clients} are more than the {len(values)} values of '{self.column or 'document'}' in the "
                "training split; lower it, or set it to null, which makes a client of each"
            )
        if clients is not None:
            group = _grouped(sizes, clients)[group]
        smallest = int(np.bincount(group).argmin())
        size = int((group == smallest).sum())
        if size < self.min_size:
            name = f"'{values[smallest]}'" if clients is None else f"client {smallest}"
            raise ConfigError(
                f"partition.min_size: {name} has {size} training examples, fewer than {self.min_size}; lower it, or "
                "group the values with fewer clients"
            )
        return group


def _grouped(sizes: Indices, clients: int) -> Indices:
    """[values]: the client of each. The largest first, each goes to the client that has the fewest examples so far."""
    of_value = np.empty(len(sizes), np.int64)
    waiting = [(0, client) for client in range(clients)]
    for value in np.argsort(-sizes, kind="stable").tolist():
        held, client = waiting[0]
        of_value[value] = client
        heapq.heapreplace(waiting, (held + int(sizes[value]), client))
    return of_value
