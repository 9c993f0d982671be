"""The sum of 2^n parts is made of the same additions, whoever makes which part."""

import pytest
import torch
from torch import Tensor

from core.ordered import pairwise, pairwise_over_ranks
from tests.ranks import on_ranks


def parts(count: int) -> list[Tensor]:
    """Numbers of such different sizes that every order of adding them up gives another sum."""
    draw = torch.Generator().manual_seed(count)
    return [torch.randn(1000, generator=draw) * 10.0 ** (i % 7) for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 4, 8, 16])
def test_neighbors_are_added_in_pairs(count: int) -> None:
    expected = parts(count)
    while len(expected) > 1:
        expected = [a + b for a, b in zip(expected[::2], expected[1::2], strict=True)]
    assert torch.equal(pairwise(parts(count), count), expected[0])
    if count > 2:
        assert not torch.equal(expected[0], torch.stack(parts(count)).flip(0).cumsum(0)[-1])


def test_few_parts_are_kept_at_once() -> None:
    alive: list[int] = []

    class Counted:
        def __init__(self) -> None:
            alive.append(1)

        def __iadd__(self, other: "Counted") -> "Counted":
            alive.pop()
            return self

    most = 0

    def made() -> "object":
        nonlocal most
        for _ in range(64):
            yield Counted()
            most = max(most, len(alive))

    pairwise(made(), 64)  # type: ignore[arg-type]
    assert most <= 7


def summed(rank: int, world: int) -> Tensor:
    own = 8 // world
    return pairwise_over_ranks(pairwise(parts(8)[rank * own : (rank + 1) * own], own), rank, world)


@pytest.mark.parametrize("world", [2, 4])
def test_every_rank_has_the_sum_that_one_process_makes(world: int) -> None:
    expected = pairwise(parts(8), 8)
    assert all(torch.equal(found, expected) for found in on_ranks(world, summed))
