"""What one can do with the slots of a population, and what a member may not notice of the others."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from core.config import override
from core.errors import ConfigError
from core.population import Member, Population
from core.population.alone import fit_alone
from core.population.feed import Feed
from core.population.lockstep import fit_together
from core.runtime import LOCAL
from tests.core.population.cases import apart, family, member, members, weights_of


def population(base: dict[str, Any], count: int, steps: int) -> tuple[Population, Feed]:
    """Members after a few steps."""
    group = members(base, [{}] * count)
    stacked = Population(group)
    feed = Feed(group, LOCAL.device, stacked.is_noisy)
    for _ in range(steps):
        stacked.step(feed.take())
    return stacked, feed


def weights(stacked: Population, row: int) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in stacked.export(row).network.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def whole(stacked: Population, row: int) -> dict[str, Tensor]:
    """Everything of a row that a step may move."""
    parts = {"rows": stacked.rows, **stacked.optimizer.state, **stacked.buffers}
    return {name: tensor[row].clone() for name, tensor in parts.items()}


def test_an_exported_member_is_the_model_that_fit_makes() -> None:
    base = family("cnn batch norm")
    stacked, _ = population(base, 2, 4)
    alone = fit_alone(members(base, [{}, {}])[1])
    ours, theirs = weights(stacked, 1), weights_of(alone)
    assert all(torch.allclose(ours[n].float(), theirs[n].float(), atol=1e-5) for n in theirs)
    assert ours["norms.0.num_batches_tracked"] == 4


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "rmsprop", "lion", "muon"])
def test_a_member_that_rests_keeps_weights_buffers_and_optimizer_state(optimizer: str) -> None:
    stacked, feed = population(family("cnn batch norm", optimizer__kind=optimizer), 3, 2)
    before = [whole(stacked, row) for row in range(3)]
    stacked.step(feed.take(), active=torch.tensor([True, False, True]))
    after = [whole(stacked, row) for row in range(3)]
    assert equal(before[1], after[1])
    assert not torch.equal(before[0]["rows"], after[0]["rows"]) and not torch.equal(before[2]["rows"], after[2]["rows"])
    assert stacked.steps == [3, 2, 3]


def test_not_a_number_stays_in_its_member() -> None:
    clean, feed = population(family("cnn batch norm"), 3, 2)
    poisoned, other_feed = population(family("cnn batch norm"), 3, 2)
    batch = feed.take()
    clean.step(batch)
    bad = {**other_feed.take()}
    bad["inputs"] = bad["inputs"].clone()
    bad["inputs"][1] = float("nan")
    moved = poisoned.step(bad).moved
    assert moved is not None and moved.tolist() == [True, False, True]
    for row in (0, 2):
        assert equal(whole(clean, row), whole(poisoned, row))


def test_a_member_that_diverges_fails_like_the_loop_and_the_others_go_on() -> None:
    base = family("mlp", optimizer={"kind": "sgd", "lr": 0.05}, train__steps=12)
    changes: list[dict[str, Any]] = [{}, {"optimizer.lr": 1e30}, {}]
    alone = [fit_alone(m) for m in members(base, changes)]
    together = fit_together(members(base, changes))
    assert [o.ended for o in together] == [o.ended for o in alone] == ["done", "failed", "done"]
    assert str(together[1].error).split("(loss")[0] == str(alone[1].error).split("(loss")[0]
    assert "first in" in str(together[1].error)
    for row in (0, 2):
        assert apart(alone[row], together[row]) < 1e-4


def test_a_member_does_not_depend_on_its_slot_or_on_how_many_there_are() -> None:
    base = family("mlp", model__dropout=0.3, data__augment={"noise": 0.2})
    group = members(base, [{}, {}, {}, {}, {}])
    five, two = fit_together(group), fit_together([group[3], group[1]])
    assert apart(five[3], two[0]) < 1e-5 and apart(five[1], two[1]) < 1e-5


def test_selecting_repeats_and_reorders_members_with_all_their_state() -> None:
    stacked, feed = population(family("cnn batch norm"), 3, 2)
    before = [whole(stacked, row) for row in range(3)]
    stacked.select([2, 0, 0])
    feed.select([2, 0, 0])
    assert [equal(whole(stacked, row), before[old]) for row, old in enumerate([2, 0, 0])] == [True] * 3
    stacked.step(feed.take())
    twins = whole(stacked, 1), whole(stacked, 2)
    assert all(torch.allclose(tensor, twins[1][name], atol=1e-6) for name, tensor in twins[0].items())


def test_a_clone_has_the_state_of_its_source_and_the_recipe_of_its_slot() -> None:
    base = family("cnn batch norm", model__dropout=0.1)
    group = members(base, [{}, {"model.dropout": 0.4, "optimizer.lr": 0.5}])
    stacked = Population(group)
    feed = Feed(group, LOCAL.device, stacked.is_noisy)
    for step in range(3):
        stacked.step(feed.take(), active=torch.tensor([True, step > 0]))
    assert stacked.steps == [3, 2]
    stacked.clone(0, 1)
    assert stacked.steps == [3, 3]
    ours, theirs = whole(stacked, 0), whole(stacked, 1)
    assert all(torch.equal(ours[n], theirs[n]) for n in ours if not n.endswith(".p"))
    assert any(not torch.equal(ours[n], theirs[n]) for n in ours if n.endswith(".p"))
    assert stacked.members[1].recipe.optimizer.lr == 0.5


def test_a_clone_has_the_frozen_weights_of_its_source() -> None:
    stacked, _ = population(family("mlp", freeze=["layers.0.*"]), 2, 1)
    assert not equal(weights(stacked, 0), weights(stacked, 1))
    stacked.clone(0, 1)
    assert equal(weights(stacked, 0), weights(stacked, 1))


def test_members_that_are_left_with_one_label_smoothing_keep_theirs() -> None:
    base = family("mlp", objective={"kind": "classification"})
    group = members(base, [{"objective.label_smoothing": 0.0}, {"objective.label_smoothing": 0.4}])
    stacked, feed = Population(group), Feed(group, LOCAL.device, False)
    stacked.select([1])
    feed.select([1])
    for _ in range(4):
        stacked.step(feed.take())
    theirs = weights_of(fit_alone(group[1]))
    assert all(torch.allclose(t, theirs[name], atol=1e-6) for name, t in weights(stacked, 0).items())


def test_weights_of_another_precision_are_loaded_as_the_loop_loads_them() -> None:
    base = family("mlp")
    given = {name: t.double() for name, t in weights_of(fit_alone(members(base, [{}])[0])).items()}
    group = [replace(m, weights=given) for m in members(base, [{}, {}])]
    assert max(apart(fit_alone(m), o) for m, o in zip(group, fit_together(group), strict=True)) < 1e-5


def test_another_member_in_a_slot_trains_as_if_it_had_always_been_there() -> None:
    base = family("mlp", train__steps=20)
    group = members(base, [{}, {}, {}])
    newcomer = member(override(group[0].recipe, {"seed": 7, "optimizer.lr": 0.02, "model.dropout": 0.3}), "new")
    stacked = Population(group)
    feed = Feed(group, LOCAL.device, True)
    for _ in range(3):
        stacked.step(feed.take())
    stacked.replace(1, newcomer)
    feed.replace(1, newcomer)
    assert stacked.steps == [3, 0, 3]
    for _ in range(5):
        stacked.step(feed.take())
    short = Member("new", override(newcomer.recipe, {"train.steps": 5}), newcomer.shard)
    theirs = weights_of(fit_alone(short))
    ours = weights(stacked, 1)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in theirs)
    old = replace(group[0], recipe=override(group[0].recipe, {"train.steps": 8}))
    assert all(torch.allclose(t, weights(stacked, 0)[n], atol=1e-5) for n, t in weights_of(fit_alone(old)).items())


def test_a_member_past_its_end_is_fed_rows_without_weight() -> None:
    group = members(family("mlp"), [{"train.steps": 2}, {"train.steps": 5}])
    feed = Feed(group, LOCAL.device, noise=False)
    weights = [feed.take()["weight"].sum(1).tolist() for _ in range(5)]
    assert weights == [[12, 12], [12, 12], [0, 12], [0, 12], [0, 12]]


def test_changed_hyperparameters_keep_the_state() -> None:
    stacked, feed = population(family("mlp"), 2, 2)
    before = whole(stacked, 1)
    changed = override(stacked.members[1].recipe, {"optimizer.lr": 0.5})
    stacked.change(1, replace(stacked.members[1], recipe=changed))
    assert equal(before, whole(stacked, 1)) and stacked.steps == [2, 2]
    stacked.step(feed.take())
    assert (whole(stacked, 1)["rows"] - before["rows"]).norm() > 1.0  # Adam moves each weight by about lr


def test_a_member_of_another_architecture_is_refused_by_name() -> None:
    stacked, _ = population(family("mlp"), 2, 0)
    with pytest.raises(ConfigError, match="member other cannot be stacked with m0"):
        stacked.replace(0, member(members(family("cnn"), [{}])[0].recipe, "other"))
    with pytest.raises(ConfigError, match="there are no members"):
        Population([])


def test_the_weighted_mean_is_that_of_the_exported_models() -> None:
    stacked, _ = population(family("cnn batch norm", freeze=["convolutions.0.*"]), 3, 2)
    mean = stacked.weighted_mean(torch.tensor([1.0, 0.0, 3.0]))
    models = [weights(stacked, row) for row in range(3)]
    assert set(mean) == {name for name in models[0] if "num_batches" not in name}
    for name, tensor in mean.items():
        assert torch.allclose(tensor, 0.25 * models[0][name] + 0.75 * models[2][name], atol=1e-6), name


def test_a_mean_of_nothing_is_refused() -> None:
    stacked, _ = population(family("mlp"), 2, 0)
    with pytest.raises(ConfigError, match="must not all be 0"):
        stacked.weighted_mean(torch.zeros(2))


def test_a_population_goes_as_soon_as_nobody_holds_it() -> None:
    import weakref

    stacked, _ = population(family("mlp"), 2, 1)
    gone = weakref.ref(stacked)
    del stacked, _
    assert gone() is None, "on a GPU its memory must come free before the next one is made"


def test_a_perturbation_follows_the_member_and_not_its_slot() -> None:
    first, _ = population(family("mlp"), 3, 0)
    second, _ = population(family("mlp"), 3, 0)
    second.select([2, 1, 0])
    base = first.rows.clone()
    first.perturb(0.1, "generation", 4)
    second.perturb(torch.tensor([0.1, 0.1, 0.1]), "generation", 4)
    assert torch.equal(first.rows, second.rows.flip(0))
    assert (first.rows - base).std().item() == pytest.approx(0.1, rel=0.1)
    assert not torch.allclose((first.rows - base)[0], (first.rows - base)[1], atol=1e-3)
    first.perturb(0.1, "generation", 5)
    assert not torch.allclose(first.rows - base, 2 * (second.rows.flip(0) - base))
