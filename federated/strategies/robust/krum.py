"""Krum: the update that has the nearest neighbors; Multi-Krum: the mean of several such (arXiv 1703.02757)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from core.errors import ConfigError
from federated.exchange import Vectors
from federated.strategies.robust.neighbors import combination, squared_distances
from federated.strategies.robust.rule import Robust


@dataclass(frozen=True)
class Krum(Robust):
    """One client's update as it is: robust, but slow to learn from clients whose data differ."""

    kind: Literal["krum"] = "krum"

    def needs(self) -> int:
        """2 f + 3 (section 4 of the paper)."""
        return 2 * self.byzantine + 3

    def rule(self, rows: Tensor, server: Vectors) -> Tensor:
        return rows[scores(squared_distances(rows), self.byzantine).argmin()]


@dataclass(frozen=True)
class MultiKrum(Robust):
    """select: how many updates are averaged; by default n - f - 2 of n, the most that is proven (arXiv 1905.04374)."""

    kind: Literal["multi_krum"] = "multi_krum"
    select: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.select is not None and self.select < 1:
            raise ValueError(f"select must be at least 1, got {self.select}")

    def needs(self) -> int:
        """2 f + 3, and so many that `select` are at most n - f - 2."""
        return self.byzantine + 2 + max(self.byzantine + 1, self.select or 0)

    def require(self, cohort: int) -> None:
        """Raises ConfigError if the cohort is too small."""
        if self.select is not None and cohort >= 2 * self.byzantine + 3 and cohort < self.needs():
            raise ConfigError(
                f"strategy.select: at most {cohort - self.byzantine - 2} of {cohort} replies can be taken if "
                f"{self.byzantine} may be byzantine, got {self.select}"
            )
        super().require(cohort)

    def rule(self, rows: Tensor, server: Vectors) -> Tensor:
        count = self.select or len(rows) - self.byzantine - 2
        chosen = scores(squared_distances(rows), self.byzantine).argsort(stable=True)[:count]
        return combination(rows, torch.zeros(len(rows), dtype=torch.float64).index_fill_(0, chosen, 1 / count))


def scores(squares: Tensor, byzantine: int) -> Tensor:
    """[n]: how far each is from its n - f - 2 nearest others, at least one, as a sum of squared distances [n, n]."""
    others = squares.sort(dim=1).values[:, 1:]  # the first is its own, 0
    return others[:, : max(1, len(squares) - byzantine - 2)].sum(dim=1)
