"""What a site sends when a server requests statistics, an evaluation or trees: nothing about single rows.

A site applies its policy to its rows before it sends anything. Whoever starts the site sets the policy: a server may
request a stricter one, never a looser one. The site sends values of groups of rows. It makes the groups once, and they
do not depend on the request: so many requests together reveal no more than one.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from core.data import DataConfig
from core.errors import ConfigError, DataError
from core.metrics import ClassMetrics, Metrics, State
from core.randomness import numpy_generator

# Where the grid of values begins, in steps. It is irrational, so that no edge is a round number that a row may have.
OFFSET = (3 - math.sqrt(5)) / 2


@dataclass(frozen=True)
class Policy:
    """least_count: the fewest rows that a number is sent about. bins_share: the most bins or groups of a column, as a
    share of its rows. tolerance: the width of the grid of values, as a share of the column's standard deviation.
    extremes: whether the least and the largest value are sent. least_sites: the fewest sites in a sum.
    """

    least_count: int = 10
    bins_share: float = 0.1
    tolerance: float = 0.1
    extremes: bool = False
    least_sites: int = 3

    def __post_init__(self) -> None:
        for name in ("least_count", "least_sites"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.bins_share <= 1:
            raise ValueError(f"bins_share must be above 0 and at most 1, got {self.bins_share}")
        if not 0 <= self.tolerance <= 1:
            raise ValueError(f"tolerance must be between 0 and 1, got {self.tolerance}")
        if self.group > 1 and not self.tolerance:
            raise ValueError("tolerance must be above 0, but where least_count and bins_share are 1 and hide nothing")

    @property
    def group(self) -> int:
        """The fewest rows in a group."""
        return max(self.least_count, math.ceil(1 / self.bins_share - 1e-9))

    def stricter(self, other: "Policy | None") -> Self:
        """The policy that sends only what both allow."""
        if other is None:
            return self
        return dataclasses.replace(
            self,
            least_count=max(self.least_count, other.least_count),
            bins_share=min(self.bins_share, other.bins_share),
            tolerance=max(self.tolerance, other.tolerance),
            extremes=self.extremes and other.extremes,
            least_sites=max(self.least_sites, other.least_sites),
        )

    @classmethod
    def of_node(cls, config: Mapping[str, Any]) -> Self:
        """Of a site's own config, whose keys are `least-count` and so on; the defaults where it says nothing.

        Raises ConfigError for a number that cannot be.
        """
        own: dict[str, Any] = {}
        for name, default in vars(cls()).items():
            key = name.replace("_", "-")
            if key in config:
                value = config[key]
                value = float(value) if isinstance(default, float) and type(value) is int else value
                if type(value) is not type(default):
                    raise ConfigError(f"node config: {key} is {value!r}, expected a value such as {default}")
                own[name] = value
        try:
            return cls(**own)
        except ValueError as error:
            raise ConfigError(f"node config: {error}") from None

    # --- values of a column ------------------------------------------------------------------------------------------

    def coarse(self, values: Tensor) -> Tensor:
        """Values [N], float64, each replaced by the middle of its group, on a grid."""
        return self._grouped(values, lambda cells, starts, ends: cells[(starts + ends - 1) // 2] + 0.5)

    def lowered(self, values: Tensor) -> Tensor:
        """Values [N], each replaced by the lower end of its group, so that trees cut between groups."""
        return self._grouped(values, lambda cells, starts, ends: cells[starts])

    def _grouped(self, values: Tensor, told: Any) -> Tensor:
        spread = float(values.double().std(correction=0)) if len(values) else 0.0
        step = math.ldexp(1.0, math.frexp(self.tolerance * spread)[1] - 1) if math.isfinite(spread) else 0.0
        if not self.tolerance or not step or not spread:  # a constant is what all rows share
            return values
        cells = torch.floor(values.double() / step - OFFSET)
        cells, order = cells.sort()
        starts = self._starts(cells)
        ends = torch.cat([starts[1:], torch.tensor([len(cells)])])
        places = (told(cells, starts, ends) + OFFSET) * step
        result = torch.empty_like(values)
        result[order] = places.repeat_interleave(ends - starts).to(values.dtype)
        return result

    def _starts(self, cells: Tensor) -> Tensor:
        """Where groups begin, of cells [N] in order: rows of one cell are together, and each group has enough rows."""
        _, sizes = cells.unique_consecutive(return_counts=True)
        starts, at, rows = [0], 0, 0
        for size in sizes.tolist():
            if rows >= self.group and len(cells) - at >= self.group:
                starts.append(at)
                rows = 0
            rows += size
            at += size
        return torch.tensor(starts)

    # --- counts ------------------------------------------------------------------------------------------------------

    def cells(self, counts: Tensor) -> Tensor:
        """Counts [C] with small cells set to 0. These hold `least_count` rows or more together: a single one of them
        could be computed from the sum."""
        kept, left = counts.clone(), 0.0
        for place in counts.argsort(stable=True).tolist():
            if 0 < counts[place] < self.least_count or 0 < left < self.least_count:
                left += float(counts[place])
                kept[place] = 0
        return kept

    def judged(self, metrics: Metrics, state: State, *key: int | str) -> State:
        """The state of an evaluation as the site sends it: classes and scores in blocks of `least_count` examples.

        key: the site's, the same for every request: then the mean of many answers reveals no more than one.
        """
        if not isinstance(metrics, ClassMetrics):
            return state  # sums over all rows
        return metrics.in_blocks(state, self.least_count, numpy_generator(*key, "blocks"))

    # --- refusals ----------------------------------------------------------------------------------------------------

    def require_unweighted(self, data: DataConfig) -> None:
        """Raises ConfigError where examples have weights: then no sum of them says how many rows it is of."""
        if self.least_count > 1 and getattr(data, "weight", None) is not None:
            raise ConfigError(
                "data.weight: examples with weights of their own cannot be counted, and a site sends nothing about "
                f"fewer than {self.least_count}; leave data.weight out, or let each site set least_count to 1"
            )

    def require(self, rows: int, sites: int) -> None:
        """Raises DataError if there are too few rows to send a number about them, or too few sites in a sum."""
        if sites < self.least_sites:
            raise DataError(
                f"statistics.least_sites: {sites} sites take part, and this one sends nothing to fewer than "
                f"{self.least_sites}"
            )
        if rows < self.least_count:
            raise DataError(
                f"statistics.least_count: this site has {rows} rows, and sends nothing about fewer than "
                f"{self.least_count}; leave it out"
            )
