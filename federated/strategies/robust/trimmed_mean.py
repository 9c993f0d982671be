"""The mean of each number without its extremes (arXiv 1803.01498, definition 2)."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from federated.exchange import Vectors
from federated.strategies.robust.neighbors import by_column
from federated.strategies.robust.rule import Robust


@dataclass(frozen=True)
class TrimmedMean(Robust):
    """Leaves out the `byzantine` smallest and as many largest values of each number."""

    kind: Literal["trimmed_mean"] = "trimmed_mean"

    def rule(self, rows: Tensor, server: Vectors) -> Tensor:
        kept = slice(self.byzantine, len(rows) - self.byzantine)
        return by_column(rows, lambda columns: columns[:, kept].mean(dim=1))
