"""Centered clipping: nobody pulls further than a radius from where the last round went (arXiv 2012.10333, eq. 3)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from federated.exchange import Total, Vectors
from federated.strategies.robust.neighbors import combination, distances_to
from federated.strategies.robust.rule import Robust


@dataclass(frozen=True)
class CenteredClipping(Robust):
    """The mean of what is left of each update beyond the center when it is cut to the radius, added to the center.

    radius: of an L2 ball (the paper's tau), in the size of updates. iterations: the result is the next one's center.
    The first center is the combined update of the round before, or 0, kept as `center` [D] in the server's vectors, so
    `combine` must be given them. Clients keep no momentum of their own, as few of them take part in every round.
    """

    kind: Literal["centered_clipping"] = "centered_clipping"
    radius: float = 1.0
    iterations: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.radius > 0:
            raise ValueError(f"radius must be above 0, got {self.radius}")
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")

    def rule(self, rows: Tensor, server: Vectors) -> Tensor:
        center = server["center"].double() if "center" in server else torch.zeros(rows.shape[1], dtype=torch.float64)
        for _ in range(self.iterations):
            shares = (self.radius / distances_to(center, rows)).clamp(max=1) / len(rows)  # at distance 0: inf, so 1
            center = combination(rows, shares) + (1 - shares.sum()) * center
        return center

    def step(self, weights: Tensor, server: Vectors, total: Total, clients: int) -> tuple[Tensor, Vectors]:
        """Moves as all robust strategies do, and remembers where to."""
        moved, _ = super().step(weights, server, total, clients)
        return moved, {"center": total.mean().float()}
