"""Sums whose last bit depends neither on who adds nor on who is first: neighbors in pairs, then those pairs in pairs,
up to the whole.

Of 2^n parts each of W ranks can add up its own W-th, if W divides them; ranks paired in the same way then make the very
additions that one process makes.
"""

import operator
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class Folding(Generic[T]):
    """Takes parts by their number, 0 to count - 1, each once, in any order. `merge(left, right)` puts neighbors
    together as soon as both are there, so that only a few parts wait at any time."""

    def __init__(self, count: int, merge: Callable[[T, T], T]) -> None:
        self.count, self.merge = count, merge
        self.waiting: dict[tuple[int, int], T] = {}  # by level of the tree and place in it

    def take(self, number: int, part: T) -> None:
        """Takes in a part, which must not be used afterwards."""
        level, place, width = 0, number, self.count
        while width > 1:
            if place ^ 1 < width:  # it has a neighbor
                other = self.waiting.pop((level, place ^ 1), None)
                if other is None:
                    break
                part = self.merge(part, other) if place % 2 == 0 else self.merge(other, part)
            level, place, width = level + 1, place // 2, (width + 1) // 2
        self.waiting[level, place] = part

    def result(self) -> T:
        """All together; every part must have been taken, and there must be one."""
        (whole,) = self.waiting.values()
        return whole


def pairwise(parts: Iterable[Tensor], count: int) -> Tensor:
    """The sum of `count` tensors, made one after the other; adds into them."""
    folding = Folding[Tensor](count, operator.iadd)
    for number, part in enumerate(parts):
        folding.take(number, part)
    return folding.result()


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
