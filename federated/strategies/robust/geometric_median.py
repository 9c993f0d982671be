"""The geometric median by the smoothed Weiszfeld algorithm: RFA (arXiv 1912.13445, algorithm 2)."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from federated.exchange import Vectors
from federated.strategies.robust.neighbors import by_column, combination, distances_to, middle
from federated.strategies.robust.rule import Robust

TOLERANCE = 1e-7  # of the median distance: less than this, and float32 does not see the next move


@dataclass(frozen=True)
class GeometricMedian(Robust):
    """The point with the smallest sum of distances to all updates.

    iterations: at most so many. smoothing: distances count as at least so long (the paper's nu). Unlike in the paper,
    where they weigh by their examples, clients count alike, and the search begins at the median of each number: from
    the mean it would first have to come back from where attackers pull it.
    """

    kind: Literal["geometric_median"] = "geometric_median"
    iterations: int = 100
    smoothing: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")
        if not self.smoothing > 0:
            raise ValueError(f"smoothing must be above 0, got {self.smoothing}")

    def rule(self, rows: Tensor, server: Vectors) -> Tensor:
        center = by_column(rows, middle)
        for _ in range(self.iterations):
            distances = distances_to(center, rows).clamp(min=self.smoothing)
            before, center = center, combination(rows, (1 / distances) / (1 / distances).sum())
            if (center - before).norm() <= TOLERANCE * distances.median():
                break
        return center
