"""Members of a repeat: ordinary recipes, named and numbered, that differ in what is repeated and in nothing else."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.config import apply, dump, override, parse
from core.data import load
from core.ensemble.repeat import MemberSpec, Repeat, members
from core.recipe import Recipe
from core.train import fit

BASE: dict[str, Any] = {
    "data": {"kind": "image"},
    "model": {"kind": "mlp", "hidden": [16], "dropout": 0.1},
    "train": {"steps": 5, "batch_size": 50},
    "seed": 7,
}


def recipe_of(**changes: Any) -> Recipe:
    return parse(Recipe, apply(BASE, {key.replace("__", "."): value for key, value in changes.items()}))


def weights_of(recipe: Recipe) -> torch.Tensor:
    data = load(recipe.data, recipe.goal.target, recipe.seed)
    return torch.cat([p.detach().flatten() for p in fit(recipe, data.shard()).task.parameters()])


@pytest.mark.parametrize(
    "repeat, names",
    [
        (Repeat(seeds=3), ["seed-0", "seed-1", "seed-2"]),
        (Repeat(folds=2), ["fold-0", "fold-1"]),
        (Repeat(bootstraps=2), ["bootstrap-0", "bootstrap-1"]),
        (Repeat(folds=2, seeds=2), ["fold-0-seed-0", "fold-0-seed-1", "fold-1-seed-0", "fold-1-seed-1"]),
        (Repeat(bootstraps=2, seeds=2), [f"bootstrap-{b}-seed-{s}" for b in (0, 1) for s in (0, 1)]),
        (Repeat(seeds=11), [f"seed-{i:02}" for i in range(11)]),
    ],
)
def test_a_members_name_says_what_it_is(repeat: Repeat, names: list[str]) -> None:
    assert [member.name for member in members(recipe_of(), repeat)] == names


@given(st.integers(1, 30), st.integers(2, 30), st.booleans())
def test_there_are_as_many_members_as_said_and_their_names_sort_as_they_do(
    seeds: int, parts: int, is_folds: bool
) -> None:
    repeat = Repeat(seeds, folds=parts) if is_folds else Repeat(seeds, bootstraps=parts)
    names = [member.name for member in members(recipe_of(), repeat)]
    assert len(set(names)) == len(names) == repeat.members
    assert sorted(names) == names


def test_overrides_hold_what_applies_and_nothing_else() -> None:
    recipe = recipe_of()
    assert members(recipe, Repeat(seeds=3))[2] == MemberSpec("seed-2", {"seed": 9, "data.split.seed": 7}, seed=9)
    assert members(recipe, Repeat(folds=5, seeds=2))[3] == MemberSpec(
        "fold-1-seed-1",
        {"seed": 8, "data.split.seed": 7, "data.split.folds": 5, "data.split.fold": 1},
        seed=8,
        fold=1,
    )
    assert members(recipe, Repeat(bootstraps=3))[2] == MemberSpec(
        "bootstrap-2", {"seed": 7, "data.split.seed": 7, "data.split.bootstrap": 2}, seed=7, bootstrap=2
    )


@pytest.mark.parametrize("kind", ["table", "image", "text"])
def test_a_members_recipe_differs_in_its_overrides_alone(kind: str) -> None:
    recipe = recipe_of(data__kind=kind, **({"model": {"kind": "gpt"}} if kind == "text" else {}))
    for repeat in (Repeat(seeds=2), Repeat(folds=3), Repeat(bootstraps=2, seeds=2)):
        for member in members(recipe, repeat):
            made = override(recipe, member.overrides)
            assert dump(made) == apply(dump(recipe), member.overrides)
            assert (made.seed, made.data.split.seed) == (member.seed, 7)
            assert made.data.split.bootstrap == member.bootstrap
            assert (made.data.split.folds, made.data.split.fold) == (repeat.folds or None, member.fold or 0)


def test_the_first_seed_trains_what_the_recipe_trains_bit_for_bit_and_the_second_does_not() -> None:
    recipe = recipe_of()
    first, second = (override(recipe, member.overrides) for member in members(recipe, Repeat(seeds=2)))
    assert torch.equal(weights_of(first), weights_of(recipe))
    assert not torch.equal(weights_of(second), weights_of(recipe))


def test_members_of_all_seeds_hold_out_what_the_recipe_holds_out() -> None:
    for recipe in (recipe_of(), recipe_of(data__split__seed=3)):
        expected = load(recipe.data, "class", recipe.seed).rows
        for member in members(recipe, Repeat(seeds=3)):
            made = override(recipe, member.overrides)
            rows = load(made.data, "class", made.seed).rows
            assert expected and rows and all(torch.equal(rows[name], expected[name]) for name in expected)


def test_the_folds_of_a_repeat_test_on_every_row_once_per_seed() -> None:
    recipe = recipe_of()
    tested: dict[int, list[int]] = {}
    for member in members(recipe, Repeat(folds=3, seeds=2)):
        made = override(recipe, member.overrides)
        rows = load(made.data, "class", made.seed).rows
        assert rows
        tested.setdefault(member.seed, []).extend(rows["test"].tolist())
    assert {seed: sorted(rows) for seed, rows in tested.items()} == {7: list(range(1797)), 8: list(range(1797))}


def test_a_repeat_keeps_the_fold_that_the_recipe_names() -> None:
    recipe = recipe_of(data__split__folds=4, data__split__fold=2)
    for repeat in (Repeat(seeds=2), Repeat(bootstraps=2)):
        splits = [override(recipe, member.overrides).data.split for member in members(recipe, repeat)]
        assert all((split.folds, split.fold) == (4, 2) for split in splits)


@pytest.mark.parametrize("repeat", [{"seeds": 10_001}, {"seeds": 101, "folds": 100}, {"bootstraps": 10**9}], ids=str)
def test_more_members_than_anyone_means_are_refused(repeat: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"at most 10,000 members in all, got .*; lower seeds, folds or bootstraps"):
        Repeat(**repeat)
    assert Repeat(seeds=100, folds=100).members == 10_000
