"""Only the numbers that change most; the rest waits until it has grown (arXiv 1712.01887, 1809.07599)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from core.population.frame import Frame
from federated.exchange import Reply, Vectors
from federated.inspection import LARGEST_NORM

INDICES, VALUES = ".indices", ".values"  # what stands for NAME: int32 [k]; float32 [k], or [k + D - P]


@dataclass(frozen=True)
class TopK:
    """The `share` of a vector's trainable numbers with the largest magnitudes, as places and values.

    Of equal magnitudes the first count. Batch statistics, which have another unit, are sent whole after the values.
    error_feedback: clients keep what they did not send, [D] per vector, and add it the next time they take part.
    """

    kind: Literal["top_k"] = "top_k"
    share: float = 0.1
    error_feedback: bool = True

    stage: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {self.share}")

    @property
    def is_stateful(self) -> bool:
        return self.error_feedback

    def count(self, frame: Frame) -> int:
        """How many numbers of a vector are sent, besides batch statistics."""
        return max(1, round(self.share * frame.trainable))

    def client(self, reply: Reply, mine: Vectors, frame: Frame, *key: Any) -> tuple[Reply, Vectors]:
        """The reply with places and values in the place of vectors [D] or [P], and what is not sent of them."""
        payload: dict[str, Tensor] = {}
        kept: Vectors = {}
        for name, vector in reply.payload.items():
            if vector.dtype != torch.float32 or vector.shape not in ((frame.trainable,), (frame.size,)):
                payload[name] = vector
                continue
            vector = vector + mine[name] if name in mine else vector
            indices = largest(vector[: frame.trainable], self.count(frame))
            values = torch.cat([vector[indices], vector[frame.trainable :]])
            payload[name + INDICES], payload[name + VALUES] = indices.int(), values
            if self.error_feedback:
                kept[name] = vector.clone()
                kept[name][indices] = 0.0
                kept[name][frame.trainable :] = 0.0  # nothing of them is owed
                if not values.abs().amax() <= LARGEST_NORM:  # the server refuses the reply: nothing new is owed
                    kept[name] = mine.get(name, torch.zeros_like(vector))
        return replace(reply, payload=payload), kept

    def server(self, reply: Reply, frame: Frame) -> Reply:
        """The reply with vectors again, 0 where nothing was sent. Raises ValueError if places or values cannot be."""
        return replace(reply, payload=dict(self._vectors(reply.payload, frame)))

    def _vectors(self, payload: dict[str, Tensor], frame: Frame) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in payload.items():
            vector = name.removesuffix(INDICES).removesuffix(VALUES)
            if vector == name:
                yield name, tensor
            elif vector + INDICES not in payload or vector + VALUES not in payload:
                raise ValueError(f"{vector} has only one of indices and values")
            elif name.endswith(INDICES):
                yield vector, self._restored(vector, tensor, payload[vector + VALUES], frame)

    def _restored(self, name: str, indices: Tensor, values: Tensor, frame: Frame) -> Tensor:
        count = self.count(frame)
        if (indices.dtype, values.dtype, values.ndim) != (torch.int32, torch.float32, 1) or indices.shape != (count,):
            raise ValueError(f"{name} has indices or values of another type or number")
        if len(values) not in (count, count + frame.size - frame.trainable):
            raise ValueError(f"{name} has {count} indices but {len(values)} values")
        places = indices.long()
        if places[0] < 0 or places[-1] >= frame.trainable or not (places[1:] > places[:-1]).all():
            raise ValueError(f"{name} has indices that do not rise from 0 to below {frame.trainable}")
        vector = values.new_zeros(frame.trainable + len(values) - count)
        vector[places] = values[:count]
        vector[frame.trainable :] = values[count:]
        return vector


def largest(vector: Tensor, count: int) -> Tensor:
    """The places [count] (int64, rising) of the largest magnitudes of a float32 vector; of equal ones the first.

    Magnitudes are compared as the integers that their bits are, which order alike and put inf and NaN on top.
    """
    magnitudes = vector.numpy().view(np.int32) & 0x7FFF_FFFF
    cut = np.partition(magnitudes, len(magnitudes) - count)[len(magnitudes) - count]
    is_chosen = magnitudes > cut
    ties = np.flatnonzero(magnitudes == cut)
    is_chosen[ties[: count - np.count_nonzero(is_chosen)]] = True
    return torch.from_numpy(np.flatnonzero(is_chosen))
