"""Numbers of 8 bits: a quarter of the bytes, rounded so that the mean over many rounds and clients stays right.

Stochastic rounding within blocks that share a scale (QSGD, arXiv 1610.02132, with the largest magnitude as the scale);
what rounding took away is added to the next update (error feedback, arXiv 1901.09847).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from core.population.frame import Frame
from core.randomness import numpy_generator
from federated.exchange import Reply, Vectors
from federated.inspection import LARGEST_NORM

CODES, SCALES = ".codes", ".scales"  # what stands for NAME: int8 [n], float32 [ceil(n / block)]
LARGEST = 127


@dataclass(frozen=True)
class Int8:
    """Every vector of the payload as int8 codes with one float32 scale per `block` numbers; single numbers stay.

    error_feedback: clients keep the error of their trainable numbers, [D] per vector, and add it the next time they
    take part. Without it, rounding is unbiased but its variance stays. Values that `top_k` has selected are rounded
    without it: they stand for other numbers each time.
    """

    kind: Literal["int8"] = "int8"
    block: int = 512
    error_feedback: bool = True

    stage: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not 256 <= self.block <= 1024:
            raise ValueError(f"block must be in [256, 1024], got {self.block}")

    @property
    def is_stateful(self) -> bool:
        return self.error_feedback

    def client(self, reply: Reply, mine: Vectors, frame: Frame, *key: Any) -> tuple[Reply, Vectors]:
        """The reply with codes and scales in the place of vectors, and the errors by the vectors' names."""
        payload: dict[str, Tensor] = {}
        kept: Vectors = {}
        for name, vector in reply.payload.items():
            if vector.ndim != 1 or vector.dtype != torch.float32:
                payload[name] = vector
                continue
            vector = vector + mine[name] if name in mine else vector
            rows, scales = self._rounded(vector, numpy_generator(*key, name))
            payload[name + CODES] = rows.to(torch.int8).view(-1)[: len(vector)].clone()
            payload[name + SCALES] = scales
            if self.error_feedback and "." not in name:  # a name with a dot is what is left of a vector
                kept[name] = vector - _flat(rows, scales, len(vector))
                kept[name][frame.trainable :] = 0.0  # batch statistics are measured anew: nothing of them is owed
                if not scales.amax() * LARGEST <= LARGEST_NORM:  # the server refuses the reply: nothing new is owed
                    kept[name] = mine.get(name, torch.zeros_like(vector))
        return replace(reply, payload=payload), kept

    def server(self, reply: Reply, frame: Frame) -> Reply:
        """The reply with vectors again. Raises ValueError if codes and scales do not fit each other."""
        return replace(reply, payload=dict(self._vectors(reply.payload)))

    def _vectors(self, payload: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in payload.items():
            vector = name.removesuffix(CODES).removesuffix(SCALES)
            if vector == name:
                yield name, tensor
            elif vector + CODES not in payload or vector + SCALES not in payload:
                raise ValueError(f"{vector} has only one of codes and scales")
            elif name.endswith(CODES):
                scales = payload[vector + SCALES]
                if (tensor.ndim, tensor.dtype, scales.dtype) != (1, torch.int8, torch.float32):
                    raise ValueError(f"{vector} has codes or scales of another type")
                if scales.shape != (-(-len(tensor) // self.block),):
                    raise ValueError(f"{vector} has {len(tensor)} codes but {scales.numel()} scales")
                rows = pad(tensor.float(), (0, -len(tensor) % self.block)).view(-1, self.block)
                yield vector, _flat(rows, scales, len(tensor))

    def _rounded(self, vector: Tensor, draws: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Codes [n, block], still float32, and scales [n]. A block that is not finite has such a scale, and zeros."""
        rows = pad(vector, (0, -len(vector) % self.block)).view(-1, self.block)
        scales = rows.abs().amax(1) / LARGEST
        is_usable = (scales > 0) & scales.isfinite()
        if not is_usable.all():
            rows = rows.masked_fill(~is_usable[:, None], 0.0)
        # 16 bits of each draw are enough: (k + 1/2) / 65536 is off by less than 1e-5 of a scale, and never 0 or 1
        bits = draws.bit_generator.random_raw(-(-rows.numel() // 4)).view(np.int16)[: rows.numel()]
        dither = torch.from_numpy(bits).float().mul_(2**-16).add_(0.5 + 2**-17).view_as(rows)
        dither.add_(rows / torch.where(is_usable, scales, 1.0)[:, None])
        return dither.floor_().clamp_(-LARGEST, LARGEST), scales


def _flat(rows: Tensor, scales: Tensor, count: int) -> Tensor:
    """The vector [count] of codes [n, block] and scales [n]."""
    return (rows * scales[:, None]).view(-1)[:count]
