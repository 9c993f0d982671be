"""Addressed noise is statistically sound, and a function of its address alone."""

import math

import pytest
import torch
from torch import Tensor

from core.randomness import example_keys, generator, keep_mask, seed_of, uniform


def kept(key: Tensor, salt: int, shape: tuple[int, ...], p: float) -> Tensor:
    return (keep_mask(key, salt, shape, p) > 0).double()


def correlations(x: Tensor) -> Tensor:
    """All pairwise correlations of the rows of x [R, N], times sqrt(N): standard normal where rows are independent."""
    x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)
    products = x @ x.T / math.sqrt(x.shape[1])
    return products[torch.triu(torch.ones_like(products), diagonal=1) > 0]


def test_seeds_depend_on_every_part_of_the_key_and_on_nothing_else() -> None:
    assert seed_of(1, "shuffle", 2) == seed_of(1, "shuffle", 2)
    assert (
        len({seed_of(1, "shuffle", 2), seed_of(2, "shuffle", 1), seed_of(1, "shuffle2"), seed_of("1", "shuffle", 2)})
        == 4
    )
    assert torch.equal(torch.rand(3, generator=generator(5, "a")), torch.rand(3, generator=generator(5, "a")))


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean(p: float) -> None:
    mask = keep_mask(example_keys(0, 1, torch.arange(64)), 3, (127, 65), p)
    deviation = math.sqrt(p / (1 - p) / mask.numel())
    assert abs(mask.mean().item() - 1) < 4 * deviation
    assert torch.allclose(mask.unique(), torch.tensor([0, 1 / (1 - p)]), rtol=1e-4)


def test_dropout_of_almost_everything_is_finite() -> None:
    assert keep_mask(torch.arange(4), 0, (64,), 0.9999999).isfinite().all()


@pytest.mark.parametrize("salt", [0, 7, 1000])
def test_masks_of_different_examples_are_independent(salt: int) -> None:
    scores = correlations(kept(example_keys(0, 5, torch.arange(200)), salt, (4096,), 0.3))
    assert abs(scores.mean()) < 5 / math.sqrt(len(scores))
    assert abs(scores.square().mean() - 1) < 0.05 and scores.abs().max() < 6


def test_columns_of_a_mask_are_independent() -> None:
    scores = correlations(kept(example_keys(0, 5, torch.arange(4096)), 0, (200,), 0.3).T)
    assert abs(scores.mean()) < 5 / math.sqrt(len(scores))
    assert abs(scores.square().mean() - 1) < 0.05 and scores.abs().max() < 6


def test_masks_of_different_layers_and_steps_are_independent() -> None:
    masks = [kept(example_keys(0, step, torch.arange(8)), salt, (4096,), 0.5) for step in range(8) for salt in range(8)]
    scores = correlations(torch.cat(masks))
    assert abs(scores.square().mean() - 1) < 0.02 and scores.abs().max() < 6


def test_the_number_of_kept_elements_is_binomial() -> None:
    counts = kept(example_keys(3, 0, torch.arange(2000)), 1, (1000,), 0.2).sum(1)
    assert abs(counts.var().item() / (1000 * 0.2 * 0.8) - 1) < 0.15


def test_a_mask_depends_on_its_example_alone() -> None:
    key = example_keys(0, 3, torch.arange(10))
    whole = keep_mask(key, 2, (5, 3), 0.5)
    assert torch.equal(whole[4:6], keep_mask(key[4:6], 2, (5, 3), 0.5))
    assert not torch.equal(whole, keep_mask(key, 3, (5, 3), 0.5))


def test_masks_under_vmap_are_the_same() -> None:
    key = example_keys(0, 3, torch.arange(12))
    members = torch.func.vmap(lambda k: keep_mask(k, 2, (5, 3), 0.5))(key.view(3, 4))
    assert torch.equal(members.flatten(0, 1), keep_mask(key, 2, (5, 3), 0.5))


def test_uniform_draws_are_uniform_and_do_not_depend_on_how_many_are_drawn() -> None:
    key = torch.tensor([seed_of(0, i) for i in range(200)])
    draws = uniform(key, 0, 500)
    assert draws.min() >= 0 and draws.max() < 1
    counts = torch.histc(draws, 100, 0, 1)
    chi_square = ((counts - 1000) ** 2 / 1000).sum().item()
    assert 50 < chi_square < 170  # 99 degrees of freedom
    assert correlations(draws).square().mean().sub(1).abs() < 0.05
    assert torch.equal(uniform(key, 0, 3), draws[:, :3])
