"""Sums whose last bit does not depend on who adds: neighbors in pairs, then those pairs in pairs, up to the whole.

Each of W ranks adds up its own W-th of the parts, and the ranks are then paired in the same way, so that the sum of
2^n parts is made of the same additions for any W that divides 2^n.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def pairwise(parts: Iterable[Tensor]) -> Tensor:
    """The sum of 2^n tensors, for some n; adds into them. At most n + 1 of them are kept at once."""
    waiting: list[Tensor] = []
    for count, part in enumerate(parts, 1):
        waiting.append(part)
        while count % 2 == 0:
            right = waiting.pop()
            waiting[-1] += right
            count //= 2
    (whole,) = waiting
    return whole


def pairwise_over_ranks(value: Tensor, rank: int, world: int) -> Tensor:
    """The sum over the ranks, 2^n of them, on every rank."""
    distance = 1
    while distance < world:
        theirs, partner = torch.empty_like(value), rank ^ distance
        swap = [dist.P2POp(dist.isend, value, partner), dist.P2POp(dist.irecv, theirs, partner)]
        for request in dist.batch_isend_irecv(swap):
            request.wait()
        value = value + theirs  # a + b is b + a, to the last bit
        distance *= 2
    return value
