"""No update larger than a bound: what one client can move, whoever it is."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from core.population.frame import Frame
from federated.exchange import UPDATE, Reply, Vectors
from federated.norm import l2_norm

SLACK = 1e-4  # relative; float32 products of an honest client are off by less than 1e-6


@dataclass(frozen=True)
class Clipping:
    """Scales the trainable part of the update so that its L2 norm is at most `norm`; smaller ones stay as they are.

    Batch statistics stay out of the norm and are not scaled; vectors beside the update are not touched. above: what the
    server does with an update above the bound, which a client of ours never sends by itself. `refuse` names the client;
    `scale` clips again, as is needed where a compression after the clipping changes norms.
    """

    kind: Literal["clipping"] = "clipping"
    norm: float = 1.0
    above: Literal["refuse", "scale"] = "refuse"

    stage: ClassVar[int] = 0
    is_stateful: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.norm < float("inf"):
            raise ValueError(f"norm must be above 0 and finite, got {self.norm}")

    def client(self, reply: Reply, mine: Vectors, frame: Frame, *key: Any) -> tuple[Reply, Vectors]:
        """The reply with a clipped update. One that is not finite stays so, and the server sees it."""
        return self._clipped(reply, frame), {}

    def server(self, reply: Reply, frame: Frame) -> Reply:
        """The reply as it is, or clipped again. Raises ValueError if there is no update, or where `above` says so."""
        if UPDATE not in reply.payload or not reply.payload[UPDATE].is_floating_point():
            raise ValueError("update is missing")
        length = l2_norm(reply.payload[UPDATE][: frame.trainable])
        if not length > self.norm * (1 + SLACK):
            return reply
        if self.above == "refuse":
            raise ValueError(f"update has norm {length:.6g}, above {self.norm:g}")
        return self._clipped(reply, frame)

    def _clipped(self, reply: Reply, frame: Frame) -> Reply:
        update = reply.payload[UPDATE]
        length = l2_norm(update[: frame.trainable])
        if not length > self.norm:  # also where the norm is NaN
            return reply
        update = update.clone()
        update[: frame.trainable] *= self.norm / length
        return replace(reply, payload=reply.payload | {UPDATE: update})
