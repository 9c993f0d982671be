"""Bulyan: a choice by Krum, and of what is chosen the middle of each number by itself (arXiv 1802.07927)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from federated.exchange import Vectors
from federated.strategies.robust.krum import scores
from federated.strategies.robust.neighbors import by_column, middle, squared_distances
from federated.strategies.robust.rule import Robust


@dataclass(frozen=True)
class Bulyan(Robust):
    """Takes n - 2 f updates, one after the other, the best by Krum among those that are left; then of each number the
    mean of the n - 4 f values that are nearest to their median.

    No rule is harder to pull away in a single number, and none needs more honest clients.
    """

    kind: Literal["bulyan"] = "bulyan"

    def needs(self) -> int:
        """4 f + 3 (section 4 of the paper)."""
        return 4 * self.byzantine + 3

    def rule(self, rows: Tensor, server: Vectors) -> Tensor:
        n = len(rows)
        chosen = chosen_by_krum(squared_distances(rows), self.byzantine, n - 2 * self.byzantine)
        count = n - 4 * self.byzantine
        return by_column(rows[chosen], lambda columns: _mean_around_median(columns, count))


def chosen_by_krum(squares: Tensor, byzantine: int, count: int) -> Tensor:
    """The numbers [count] of those that Krum takes one by one, given squared distances [n, n].

    Those that are taken last compete among fewer than Krum asks for; the nearest neighbor decides then.
    """
    left = torch.arange(len(squares))
    chosen = []
    for _ in range(count):
        best = int(scores(squares[left][:, left], byzantine).argmin())
        chosen.append(left[best])
        left = torch.cat([left[:best], left[best + 1 :]])
    return torch.stack(chosen)


def _mean_around_median(columns: Tensor, count: int) -> Tensor:
    nearest = (columns - middle(columns)[:, None]).abs().argsort(dim=1, stable=True)[:, :count]
    return columns.gather(1, nearest).mean(dim=1)
