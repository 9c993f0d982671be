"""`train.epochs` and `evaluate_every: epoch`: the size of the data turns them into steps, in every way of training."""

from typing import Any

import pytest
import torch

from core.config import apply, override, parse
from core.data import Data, load
from core.errors import ConfigError
from core.population import Member, fit_all
from core.recipe import Recipe
from core.runtime import Runtime
from core.train import fit

EPOCHS = {"epochs": 3, "batch_size": 32, "evaluate_every": "epoch", "log_every": 1}
BASE: dict[str, Any] = {
    "data": {"kind": "table", "path": "bundled:wine"},
    "model": {"kind": "mlp", "hidden": [8]},
    "schedule": {"kind": "cosine", "warmup": 2},
    "train": EPOCHS,
}


def recipe_of(**changes: Any) -> Recipe:
    return parse(Recipe, apply(BASE, {key.replace("__", "."): value for key, value in changes.items()}))


def data_of(recipe: Recipe) -> Data:
    return load(recipe.data, recipe.goal.target, recipe.seed)


def test_epochs_train_as_many_steps_as_they_have_batches_and_evaluate_after_each() -> None:
    recipe, records = recipe_of(), list[dict[str, Any]]()
    data = data_of(recipe)
    epoch = -(-data.sizes["train"] // 32)
    result = fit(recipe, data.shard(), runtime=Runtime(report=records.append))
    assert epoch == 5 and result.progress.step == 3 * epoch
    assert [r["step"] for r in records if r.get("split") == "validation"] == [epoch, 2 * epoch, 3 * epoch]
    steps = override(recipe, {"train.steps": 3 * epoch, "train.evaluate_every": epoch})
    assert steps.train.epochs is None  # the steps of an override replace the epochs of a file
    same = fit(steps, data.shard()).task.state_dict()  # also the schedule goes over all steps
    assert all(torch.equal(value, same[name]) for name, value in result.task.state_dict().items())


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_members_with_unequal_data_train_for_equal_epochs(backend: Any) -> None:
    recipes = [recipe_of(data__split__test=share) for share in (0.1, 0.6)]
    shards = [data_of(recipe).shard() for recipe in recipes]
    members = [Member(str(i), recipe, shards[i]) for i, recipe in enumerate(recipes)]
    steps = [outcome.require().progress.step for outcome in fit_all(members, backend)]
    assert steps == [3 * -(-shard.sizes["train"] // 32) for shard in shards] and steps[0] != steps[1]


def test_epochs_and_steps_on_one_command_line_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^train.steps: train.epochs is given too, and only one of them counts"):
        recipe_of(train__steps=3, train__epochs=2)


def test_a_warmup_longer_than_the_epochs_is_refused_when_the_size_is_known() -> None:
    recipe = recipe_of(schedule__warmup=100)
    with pytest.raises(ConfigError, match=r"^schedule.warmup: 100 steps do not fit in train.steps 15"):
        fit(recipe, data_of(recipe).shard())
