"""Who has which training examples. The union is the registry: a new kind is a file and a name here.

partition = make_partition(Dirichlet(alpha=0.1), data, recipe.data, clients=100, seed=0)
"""

from core.data import Data, DataConfig
from core.errors import ConfigError
from core.randomness import numpy_generator
from federated.partition.column import Column
from federated.partition.deal import filled
from federated.partition.dirichlet import Dirichlet
from federated.partition.feature import Feature
from federated.partition.iid import IID
from federated.partition.labels import Labels
from federated.partition.partition import Dealing, Partition
from federated.partition.quantity import Quantity
from federated.partition.shards import Shards

PartitionConfig = IID | Dirichlet | Labels | Shards | Quantity | Feature | Column

__all__ = [
    "IID",
    "Column",
    "Dealing",
    "Dirichlet",
    "Feature",
    "Labels",
    "Partition",
    "PartitionConfig",
    "Quantity",
    "Shards",
    "make_partition",
]


def make_partition(
    config: PartitionConfig, data: Data, source: DataConfig, clients: int | None, seed: int
) -> Partition:
    """Every training example to one client, and at least `min_size` to each: the same for the same seed anywhere.

    source: what `data` was loaded from. clients: None makes one of each value of a column. Where a kind would leave a
    client with less than `min_size`, random examples are moved from the largest clients. Raises ConfigError if there
    are too few examples, or the data does not go with the kind.
    """
    count = len(data.splits["train"])
    if clients is not None and clients < 1:
        raise ConfigError(f"clients: must be at least 1, got {clients}")
    if clients is not None and clients * config.min_size > count:
        raise ConfigError(
            f"clients: {clients} clients of at least {config.min_size} training examples need "
            f"{clients * config.min_size}, there are {count}; lower clients or partition.min_size"
        )
    if isinstance(config, Column):
        owner = config.owners(data, source, clients)
        return Partition.of(owner, int(owner.max()) + 1)
    if clients is None:
        raise ConfigError(f"clients: partition.kind {config.kind} does not say how many there are; set clients")
    owner = config.owners(data, clients, seed)
    owner = filled(owner, clients, config.min_size, numpy_generator(seed, "partition", "fill"))
    return Partition.of(owner, clients, config.levels(clients) if isinstance(config, Feature) else None)
