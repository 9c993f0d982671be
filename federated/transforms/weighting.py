"""With what weight a reply counts. Clients say how many examples they have; a cap bounds what that can be worth."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from core.population.frame import Frame
from federated.exchange import Reply, Vectors


@dataclass(frozen=True)
class Weighting:
    """by: the weight that the strategy gives (its examples, mostly), its square root, or 1 for every client.

    cap: the largest weight, after `by`; null for none, and then a client that lies about its examples is believed.
    """

    kind: Literal["weighting"] = "weighting"
    by: Literal["examples", "sqrt", "uniform"] = "examples"
    cap: float | None = None

    stage: ClassVar[int] = 0
    is_stateful: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.cap is not None and not 0 < self.cap < math.inf:
            raise ValueError(f"cap must be above 0 and finite, or null, got {self.cap}")
        if self.by == "uniform" and self.cap is not None:
            raise ValueError(f"cap must be null where by is uniform: every weight is 1; got {self.cap}")

    @property
    def largest(self) -> float:
        """The largest weight that a reply can have."""
        if self.by == "uniform":
            return 1.0
        return math.inf if self.cap is None else self.cap

    def client(self, reply: Reply, mine: Vectors, frame: Frame, *key: Any) -> tuple[Reply, Vectors]:
        """The reply with its new weight."""
        if self.by == "uniform":
            return replace(reply, weight=1.0), {}
        weight = math.sqrt(reply.weight) if self.by == "sqrt" else reply.weight
        return replace(reply, weight=min(weight, self.largest)), {}

    def server(self, reply: Reply, frame: Frame) -> Reply:
        """The reply as it is. Raises ValueError unless its weight is one that `client` can give."""
        if not reply.weight > 0:
            raise ValueError(f"weight {reply.weight:g} is not above 0")
        if reply.weight > self.largest:
            raise ValueError(f"weight {reply.weight:g} is above {self.largest:g}")
        if self.by == "uniform" and reply.weight != 1:
            raise ValueError(f"weight {reply.weight:g} is not 1")
        return reply
