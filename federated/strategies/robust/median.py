"""The median of each number by itself (arXiv 1803.01498, definition 1)."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from federated.exchange import Vectors
from federated.strategies.robust.neighbors import by_column, middle
from federated.strategies.robust.rule import Robust


@dataclass(frozen=True)
class Median(Robust):
    """Stays between the honest clients' numbers as long as they are more than half."""

    kind: Literal["median"] = "median"

    def rule(self, rows: Tensor, server: Vectors) -> Tensor:
        return by_column(rows, middle)
