"""A run of trees: a table, who has which of its rows, and how trees are grown on them."""

from dataclasses import dataclass, field
from typing import Literal

from core.data import Data, DataConfig, Table, load
from core.errors import ConfigError
from federated.clients import PartitionedClients
from federated.partition import IID, Partition, PartitionConfig, make_partition
from federated.policy import Policy
from federated.trees.config import TreesConfig


@dataclass(frozen=True)
class TreesRun:
    """Trees over clients that keep their rows. There is no network in it, so it holds no recipe.

    `target` says what is predicted: a class, or a real value. Each client holds out the share `held_out` of its rows.
    `seed` addresses every draw, those of the trees too. `engine`: `inproc` is this process, `pool` spreads clients over
    `workers` processes or, with an `address`, Ray workers. `statistics` is what a client lets out in its leaves and in
    an evaluation; null hides nothing.
    """

    data: DataConfig
    trees: TreesConfig = field(default_factory=TreesConfig)
    target: Literal["class", "real"] = "class"
    name: str = "trees"
    seed: int = 0
    clients: int | None = 10
    partition: PartitionConfig = field(default_factory=IID)
    held_out: float = 0.2
    engine: Literal["inproc", "pool"] = "inproc"
    workers: int = 2
    cpus_per_worker: float = 1.0
    address: str | None = None
    run_dir: str | None = None
    statistics: Policy | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.data, Table):
            raise ConfigError(f"data.kind: trees grow on the rows of a table, got {self.data.kind}; write kind: table")
        if self.trees.seed:
            raise ConfigError(f"trees.seed: the run's seed is that of its trees; write seed: {self.trees.seed}")
        if self.clients is not None and self.clients < 1:
            raise ValueError(f"clients must be at least 1, got {self.clients}")
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")
        if not self.cpus_per_worker > 0:
            raise ValueError(f"cpus_per_worker must be above 0, got {self.cpus_per_worker}")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must be in [0, 1), got {self.held_out}")
        if self.statistics:
            self.statistics.require_unweighted(self.data)
        if self.address is not None and self.engine != "pool":
            raise ConfigError("address: only goes with engine=pool; set engine=pool")

    def deal(self) -> tuple[Partition, Data]:
        """Which client has which of the training rows, and all the data. Raises ConfigError, DataError."""
        data = load(self.data, self.target, self.seed)
        return make_partition(self.partition, data, self.data, self.clients, self.seed), data

    def clients_of(self, partition: Partition, data: Data) -> list[Data]:
        """Each client's own rows."""
        clients = PartitionedClients(data, partition, self.held_out, self.seed)
        return [clients.data(client, self.seed) for client in range(len(clients))]
