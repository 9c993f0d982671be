"""Clients that know a few labels only (arXiv 2102.02079, "quantity-based label imbalance")."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from core.data import Data
from core.data.split import Indices
from core.errors import ConfigError
from core.randomness import numpy_generator
from federated.partition.deal import ranks
from federated.partition.partition import check_counts
from federated.partition.view import present_labels


@dataclass(frozen=True)
class Labels:
    """Each client has examples of `per_client` labels; who share a label have equally many of it, or nearly so.

    Labels are chosen at random, but so that none is left over. With too few examples for all a client may miss one of
    its labels. Real targets have their quantile bins as labels.
    """

    kind: Literal["labels"] = "labels"
    per_client: int = 2
    min_size: int = 1

    def __post_init__(self) -> None:
        check_counts(per_client=self.per_client, min_size=self.min_size)

    def owners(self, data: Data, clients: int, seed: int) -> Indices:
        labels, classes = present_labels(data, self.kind)
        if self.per_client > classes:
            raise ConfigError(
                f"partition.per_client: {self.per_client} labels a client, but there are only {classes}; lower it"
            )
        if clients * self.per_client < classes:
            raise ConfigError(
                f"partition.per_client: {clients} clients of {self.per_client} labels leave some of the {classes} "
                "labels to nobody; raise it, or clients"
            )
        draws = numpy_generator(seed, "partition")
        held = _chosen(clients, classes, self.per_client, draws)
        return _repaired(_dealt(labels, held, draws), labels, held, self.min_size)


def _chosen(clients: int, classes: int, count: int, draws: np.random.Generator) -> Indices:
    """[clients, count]: different labels for each client, every label with some client."""
    first, client = draws.permutation(classes), np.arange(clients)
    held = np.empty((clients, count), np.int64)
    for j in range(count):
        # uniform over what a client does not hold yet: count past what it holds
        pick = draws.integers(classes - j, size=clients)
        for earlier in np.sort(held[:, :j], axis=1).T:
            pick += pick >= earlier
        turn = j * clients + client
        held[:, j] = np.where((j == 0) | (turn < classes), first[turn % classes], pick)
    return held


def _dealt(labels: Indices, held: Indices, draws: np.random.Generator) -> Indices:
    """[N]: label by label, dealt evenly among its holders in random order."""
    slots = draws.permutation(held.size)
    slots = slots[np.argsort(held.ravel()[slots], kind="stable")]
    holders = np.bincount(held.ravel())
    first = holders.cumsum() - holders
    order = draws.permutation(len(labels))
    label = labels[order]
    share = ranks(label) * holders[label] // np.bincount(labels)[label]
    owner = np.empty(len(labels), np.int64)
    owner[order] = slots[first[label] + share] // held.shape[1]
    return owner


def _repaired(owner: Indices, labels: Indices, held: Indices, min_size: int) -> Indices:
    """Clients with too few examples get some of their own labels, each from the largest of those who have it."""
    sizes = np.bincount(owner, minlength=len(held))
    poor = np.flatnonzero(sizes < min_size)
    by_label: list[NDArray[np.int64]] = np.split(np.argsort(labels, kind="stable"), np.bincount(labels).cumsum()[:-1])
    for client in poor.tolist():
        rows = np.concatenate([by_label[label] for label in held[client].tolist()])
        while sizes[client] < min_size:
            row = rows[sizes[owner[rows]].argmax()]
            if sizes[owner[row]] <= min_size:
                raise ConfigError(
                    f"partition.min_size: client {client} gets {sizes[client]} examples of its {held.shape[1]} labels, "
                    f"fewer than {min_size}; lower it or clients, or raise per_client"
                )
            sizes[owner[row]] -= 1
            owner[row] = client
            sizes[client] += 1
    return owner
