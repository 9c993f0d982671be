"""A federation whose nodes read their own files: no process ever sees the data of two of them.

What would be fitted on all data is that of a first model, which the server (`init`) and every node have as a directory:
how inputs are scaled, which classes there are, and the weights of the first round. A node opens the two paths that its
own config names, and none that the server's config names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from core.data import Augment, Data, Image, Preprocess, Spec, Table, open_with
from core.errors import ConfigError, DataError
from core.randomness import seed_of
from core.storage.artifact import read_weights, require_single
from federated.clients import NOTHING, PartitionedClients, Subset
from federated.federation import Federation
from federated.flower.app_config import OWN_DATA
from federated.partition import Partition
from federated.policy import Policy
from federated.run import FederateRun

DATA_PATH, MODEL_PATH = "data-path", "model-path"  # keys of a node's config: its files, and its copy of the first model


@dataclass(frozen=True)
class FarClients:
    """Clients as the server knows them: how many examples each has, and none of the examples."""

    preprocess: Preprocess
    sizes: Tensor
    held_out_sizes: Tensor
    fingerprint: str = "unknown"

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def spec(self) -> Spec:
        return self.preprocess.spec

    def data(self, client: int, seed: int) -> Data:
        """What a model must know of it, and no example."""
        return Data(self.preprocess, self.fingerprint, {}, seed)


class OwnClients:
    """Clients as one of them knows them: its own data. What is drawn for it is addressed by its number, as ever."""

    def __init__(self, run: FederateRun, preprocess: Preprocess, client: int) -> None:
        """Reads the recipe's data. Raises DataError if it does not go with the preprocessing."""
        data = open_with(preprocess, run.recipe.data)
        whole = data.splits["test"]
        if whole.take(whole.addresses(0, None)[:1])[1] is None:
            raise DataError(f"{run.recipe.data.path}: has no targets to learn from")
        everything = Partition(torch.arange(len(whole)), torch.tensor([0, len(whole)]))
        splits = {"train": whole, "validation": Subset(whole, NOTHING), "test": Subset(whole, NOTHING)}
        seed = seed_of(run.recipe.seed, "own data", client)
        own = PartitionedClients(replace(data, splits=splits, seed=seed), everything, run.evaluate.held_out, seed)
        self.client, self.own, self.count = client, own, clients_of(run)
        self.sizes, self.held_out_sizes = self._alone(own.sizes), self._alone(own.held_out_sizes)
        self.preprocess, self.spec, self.fingerprint = preprocess, preprocess.spec, data.fingerprint

    def __len__(self) -> int:
        return self.count

    def data(self, client: int, seed: int) -> Data:
        """This client's splits; there are no others'."""
        assert client == self.client, f"client {client} is not here"
        return self.own.data(0, seed)

    def _alone(self, sizes: Tensor) -> Tensor:
        everyone = torch.zeros(self.count, dtype=torch.long)
        everyone[self.client] = sizes[0]
        return everyone


def on_server(run: FederateRun, sizes: Mapping[int, tuple[int, int]]) -> Federation:
    """The federation as the server knows it. `sizes`: training and held-out examples of each client."""
    first = _first(run, run.init)
    columns = torch.tensor([sizes[client] for client in range(clients_of(run))], dtype=torch.long)
    clients = FarClients(Preprocess.load(first), columns[:, 0], columns[:, 1])
    return Federation(_looped(run), clients, None, read_weights(first))


def reads_its_own(run_config: Mapping[str, Any], node_config: Mapping[str, Any]) -> bool:
    """Whether a node reads the files that its own config names, in place of those of the run's config.

    Raises ConfigError where the run does not ask for it and the node has `data-path`: who started it has decided.
    """
    wanted = bool(run_config.get(OWN_DATA))
    if DATA_PATH in node_config and not wanted:
        raise ConfigError(
            f"{OWN_DATA}: this node was started with {DATA_PATH} and reads nothing else; set {OWN_DATA}=true into the "
            "run config"
        )
    return wanted


def on_node(run: FederateRun, node_config: Mapping[str, Any], client: int) -> Federation:
    """The federation as one node knows it. Raises ConfigError if its node config does not say where its files are."""
    data, model = (str(node_config.get(key) or "") for key in (DATA_PATH, MODEL_PATH))
    if not data:
        raise ConfigError(f"node config: {DATA_PATH} is missing: start client {client}'s SuperNode with its own files")
    if not model:
        raise ConfigError(
            f"node config: {MODEL_PATH} is missing: start client {client}'s SuperNode with its copy of the first model"
        )
    first = _first(run, model)
    recipe = replace(run.recipe, data=replace(run.recipe.data, path=data))
    policy = Policy.of_node(node_config).stricter(run.statistics)  # who started this node decides, not the server
    policy.require_unweighted(recipe.data)
    run = replace(run, recipe=recipe, init=first, devices=None, statistics=policy)  # devices may name a file
    run = _looped(run)
    return Federation(run, OwnClients(run, Preprocess.load(first), client), None, read_weights(first))


def clients_of(run: FederateRun) -> int:
    """How many nodes take part."""
    if run.clients is None:
        raise ConfigError("clients: write how many nodes there are; they do not follow from data that nobody sees")
    return run.clients


def _first(run: FederateRun, model: str | None) -> str:
    """The directory of the first model. ConfigError for what nodes with their own data cannot do."""
    data = run.recipe.data
    if model is None:
        raise ConfigError(
            "init: nodes that read their own data need the preprocessing of a first model; set init=MODEL"
        )
    if not isinstance(data, Table | Image):
        raise ConfigError(f"data.kind: nodes read tables and images of their own, not {data.kind}")
    if isinstance(data, Image) and data.augment != Augment():
        raise ConfigError("data.augment: nodes that read their own data do not change it; leave augment out")
    if run.attack is not None:
        raise ConfigError("attack: nodes that read their own data are real ones; leave attack out")
    require_single(model)
    return model


def _looped(run: FederateRun) -> FederateRun:
    """A node trains one client: there are no rows to lay together."""
    return replace(run, backend="loop")
