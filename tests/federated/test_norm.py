"""The norm of an update is exact to a millionth, whatever its numbers are."""

import math

import pytest
import torch

from federated.norm import BLOCK, FEW, l2_norm


@pytest.mark.parametrize("count", [0, 1, 100, FEW, FEW + 1, FEW + BLOCK, 10 * FEW + 17])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e15])
def test_the_norm_is_that_of_float64(count: int, scale: float) -> None:
    vector = torch.randn(count, generator=torch.Generator().manual_seed(count)) * scale
    assert l2_norm(vector) == pytest.approx(float(vector.double().norm()), rel=1e-6)


def test_many_equal_numbers_do_not_lose_digits() -> None:
    assert l2_norm(torch.full((4_000_000,), 0.1)) == pytest.approx(0.1 * 2000, rel=1e-6)


def test_numbers_whose_squares_are_too_large_for_float32_have_a_norm() -> None:
    vector = torch.zeros(FEW + 2 * BLOCK)
    vector[3], vector[-1] = 3e25, 4e25
    assert l2_norm(vector) == pytest.approx(5e25, rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [5, -1])
def test_a_number_that_is_not_finite_shows_in_the_norm(bad: float, place: int) -> None:
    vector = torch.zeros(FEW + BLOCK + 1)
    vector[place] = bad
    assert not math.isfinite(l2_norm(vector))
