"""Columns of a table that lies with many clients, described for `hanse federate statistics`: no row leaves a client."""

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.data import Data, Table, load
from core.errors import ConfigError
from federated.clients import PartitionedClients
from federated.partition import Feature, make_partition
from federated.policy import Policy
from federated.statistics import asking, quantiles, summarize
from federated.trees.run import TreesRun
from hanse.federate_trees import parse_any

Row = dict[str, Any]
LARGEST = sys.float_info.max


@dataclass(frozen=True)
class Wanted:
    """What is asked of every numeric column beside count, mean and standard deviation."""

    quantiles: tuple[float, ...] = (0.1, 0.5, 0.9)

    def __post_init__(self) -> None:
        for value in self.quantiles:
            if not 0 <= value <= 1:
                raise ValueError(f"quantiles must be in [0, 1], got {value}")
        if len(set(self.quantiles)) < len(self.quantiles):
            raise ValueError(f"quantiles must name each once, got {list(self.quantiles)}")


def clients_of(file: str | Path, overrides: Mapping[str, Any]) -> tuple[list[Data], Policy]:
    """The clients of any federation's file, each with all of its rows as `train`, and what they let out.

    Raises ConfigError, DataError.
    """
    run = parse_any(file, overrides)
    holder = run if isinstance(run, TreesRun) else run.recipe
    target = run.target if isinstance(run, TreesRun) else run.recipe.goal.target
    source = holder.data
    if not isinstance(source, Table):
        raise ConfigError(f"data.kind: statistics are those of a table's columns, got {source.kind}")
    if not isinstance(run.partition, Feature):  # whose noise is in units of standard deviations
        source = dataclasses.replace(source, normalize=False)  # there and back, a 0 would be -1e-9
    data = load(source, target, holder.seed)
    partition = make_partition(run.partition, data, source, run.clients, holder.seed)
    clients = PartitionedClients(data, partition, 0.0, holder.seed)
    return [clients.data(client, holder.seed) for client in range(len(clients))], run.statistics or Policy()


def described(clients: Sequence[Data], policy: Policy, wanted: Wanted) -> tuple[list[Row], list[Row], tuple[str, ...]]:
    """A row for each numeric column, one for each label, and what was withheld."""
    found = summarize(clients, policy)
    columns = []
    for name in found.columns:
        one = found.of(name)
        # the search takes no more rounds over all floats than over a range that nobody tells
        low, high = (-LARGEST, LARGEST) if math.isnan(one["low"]) else (one["low"], one["high"])
        places = quantiles(asking(clients, name, policy), wanted.quantiles, low, high)
        row = {"column": name, "count": int(one["count"]), "mean": one["mean"], "std": one["std"]}
        marks = {f"q{100 * share:g}": place for share, place in zip(wanted.quantiles, places, strict=True)}
        least, most = ({}, {}) if math.isnan(one["low"]) else ({"min": low}, {"max": high})
        columns.append({**row, **least, **marks, **most})
    total = sum(found.labels.values()) + found.hidden
    labels = [{"label": name, "count": n, "share": n / total} for name, n in found.labels.items()]
    return columns, labels, found.withheld
