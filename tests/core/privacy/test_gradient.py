"""Private gradients against one-by-one differentiation, and that the noise is what it says."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.config import parse
from core.data.examples import Stacked
from core.learner import start
from core.population import Member, fit_all
from core.population.cohort import Cohort, Job
from core.privacy import ExamplePrivacy
from core.privacy.gradient import clipped_sum, noise_like, private_gradient
from core.recipe import Recipe
from core.runtime import Runtime
from core.task import Task
from core.train import fit
from tests.core.population.cases import ZOO, apart, data_of, family, members

PRIVATE = [name for name in ZOO if "batch norm" not in name]
KEYED = {"clip": 0.5, "noise_multiplier": 0.7, "noise": "keyed"}


def one_by_one(task: Task, batch: dict[str, Tensor], clip: float) -> dict[str, Tensor]:
    """Micro-batches of one through ordinary autograd, each clipped by itself, summed."""
    sums = {name: torch.zeros_like(p) for name, p in task.named_parameters()}
    for i in range(len(batch["weight"])):
        one = {name: tensor[i : i + 1] for name, tensor in batch.items()}
        losses, counts = task(one)
        loss = (losses / counts * one["weight"]).sum()
        gradients = torch.autograd.grad(loss, list(task.parameters()))
        norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
        for (name, _), gradient in zip(task.named_parameters(), gradients, strict=True):
            sums[name] += gradient * min(1.0, clip / max(norm.item(), 1e-30))
    return sums


@pytest.mark.parametrize("name", PRIVATE)
@pytest.mark.parametrize("clip", [0.01, 1000.0])
def test_a_private_gradient_is_that_of_micro_batches_of_one(name: str, clip: float) -> None:
    recipe = parse(Recipe, family(name, model__dropout=0.2))
    learner = start(recipe, data_of(recipe).spec)
    batch = data_of(recipe).shard().batch(recipe.train, 0)
    batch["weight"] = batch["weight"] * torch.linspace(0.0, 2.0, len(batch["weight"]))  # one row has no weight
    expected = one_by_one(learner.task, batch, clip)
    found, _, _ = private_gradient(learner.task, list(learner.task.named_parameters()), [batch], clip)
    for key, value in expected.items():
        assert torch.allclose(found[key], value, rtol=1e-4, atol=1e-6 * clip + 1e-7), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=20)
@given(rows=st.integers(1, 6), clip=st.floats(0.01, 10.0), scale=st.floats(0.1, 1e4), seed=st.integers(0, 99))
def test_no_example_moves_the_sum_by_more_than_the_bound(
    dtype: torch.dtype, rows: int, clip: float, scale: float, seed: int
) -> None:
    recipe = parse(Recipe, family("mlp"))
    task = recipe.build(data_of(recipe).spec)
    generator = torch.Generator().manual_seed(seed)
    batch = {
        "inputs": scale * torch.randn(rows + 1, 1, 8, 8, generator=generator),
        "targets": torch.randint(10, (rows + 1,), generator=generator),
        "weight": torch.ones(rows + 1),
    }
    weights = {name: p.detach() for name, p in task.named_parameters()}
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        whole, _, _ = clipped_sum(task, weights, {}, batch, clip)
        without, _, _ = clipped_sum(task, weights, {}, {name: tensor[1:] for name, tensor in batch.items()}, clip)
    assert all(value.dtype == torch.float32 for value in whole.values())
    moved = torch.stack([(whole[name] - without[name]).square().sum() for name in whole]).sum().sqrt()
    assert moved <= clip * (1 + 1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_no_example_moves_a_client_by_more_than_the_bound(executor: Any, precision: str) -> None:
    changes = {"privacy": {"clip": 0.5, "noise_multiplier": 0.0}, "train__batch_size": 200}
    sgd = {"kind": "sgd", "lr": 1.0, "momentum": 0.0}
    recipe = parse(Recipe, family("mlp", optimizer=sgd, train__precision=precision, **changes))
    data, numbers = data_of(recipe), torch.arange(20)
    splits = [Stacked(*data.splits["train"].take(some)) for some in (numbers, *(numbers[numbers != i] for i in (3, 4)))]
    sets = [replace(data, splits={**data.splits, "train": split}) for split in splits]
    jobs = [Job(str(i), one.shard(), 1) for i, one in enumerate(sets)]
    cohort = Cohort(recipe, data.spec, executor)
    whole, *others = cohort.train(cohort.frame.vector(cohort.learner.task), jobs)
    for one in others:
        moved = 200 * (whole.vector.double() - one.vector.double()).norm().item()
        assert 0 < moved <= 0.5 * (1 + 1e-3), "the weights themselves are rounded to float32"


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_private_training_fails_where_the_weights_are_not_finite(backend: Any) -> None:
    recipe = parse(Recipe, family("mlp", privacy=KEYED, train__steps=3))
    data = data_of(recipe)
    state = recipe.build(data.spec).network.state_dict()
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in state.items()}
    group = [Member("broken", recipe, data.shard(), broken), Member("sound", recipe, data.shard())]
    first, second = fit_all(group, backend)
    assert first.error is not None and "not finite at step 1" in str(first.error)
    assert second.error is None


def test_rows_that_fill_a_batch_are_not_counted_as_examples() -> None:
    recipe = parse(Recipe, family("mlp", privacy=KEYED, train__batch_size=8, train__steps=2))
    data = data_of(recipe)
    inputs, targets = data.splits["train"].take(torch.arange(9))  # the second batch has one example and 7 rows of fill
    few = Stacked(torch.full_like(inputs, torch.nan), targets)
    result = fit(recipe, replace(data, splits={**data.splits, "train": few}).shard())
    assert result.progress.dropped_examples == 9


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_an_example_whose_gradient_is_not_finite_counts_as_zero_and_is_counted(backend: Any) -> None:
    base = family("mlp", privacy=KEYED, train__batch_size=64, train__steps=3, data__path="bundled:digits")
    (member,) = members(base, [{}])
    train = member.shard.data.splits["train"]
    small = replace(train, inputs=train.inputs[:40].clone(), targets=train.targets[:40])
    empty = replace(small, inputs=small.inputs.clone())
    empty.inputs[7], small.inputs[7] = float("nan"), 0.0
    small = replace(small, weight=(torch.arange(40) != 7).float())  # the same examples, where this one has no weight
    records: list[Any] = []
    shards = [replace(member.shard.data, splits={**member.shard.data.splits, "train": own}) for own in (small, empty)]
    without, broken = (
        fit_all([replace(member, shard=data.shard(), name=n) for n in "ab"], backend, Runtime(report=records.append))[0]
        for data in shards
    )
    assert broken.require().progress.dropped_examples == 3 and without.require().progress.dropped_examples == 0
    assert apart(without, broken) < 1e-6
    assert [r["dropped_examples"] for r in records if r.get("member") == "a" and "dropped_examples" in r] == [1, 2, 3]


@pytest.mark.parametrize("noise", ["secure", "keyed"])
def test_the_noise_is_normal_with_the_deviation_that_it_says(noise: Any) -> None:
    privacy = ExamplePrivacy(clip=2.0, noise_multiplier=1.5, noise=noise)
    drawn = noise_like(torch.zeros(200_000), privacy, 1, 2)
    assert drawn.mean().item() == pytest.approx(0, abs=0.05)
    assert drawn.std().item() == pytest.approx(3.0, rel=0.02)
    inside = (drawn.abs() < 3.0).float().mean().item()
    assert inside == pytest.approx(0.6827, abs=0.01)


def test_keyed_noise_follows_seed_and_step_and_secure_noise_nothing() -> None:
    row, keyed, secure = torch.zeros(50), ExamplePrivacy(noise="keyed"), ExamplePrivacy()
    assert torch.equal(noise_like(row, keyed, 1, 2), noise_like(row, keyed, 1, 2))
    assert not torch.equal(noise_like(row, keyed, 1, 2), noise_like(row, keyed, 1, 3))
    assert not torch.equal(noise_like(row, keyed, 1, 2), noise_like(row, keyed, 2, 2))
    assert not torch.equal(noise_like(row, secure, 1, 2), noise_like(row, secure, 1, 2))
    assert not noise_like(row, ExamplePrivacy(noise_multiplier=0.0), 1, 2).any()


def test_without_clipping_or_noise_a_private_step_is_an_ordinary_one() -> None:
    base = family("mlp", optimizer={"kind": "sgd", "lr": 0.1})
    free = {**base, "privacy": {"clip": 1e6, "noise_multiplier": 0.0}}
    (ordinary,), (private,) = fit_all(members(base, [{}])), fit_all(members(free, [{}]))
    assert apart(ordinary, private) < 1e-5


def test_accumulation_changes_no_private_step() -> None:
    base = family("mlp", privacy=KEYED, train__batch_size=30)
    whole, parts = fit_all(members(base, [{}])), fit_all(members(base, [{"train.accumulate": 4}]))
    assert apart(whole[0], parts[0]) < 1e-5


@pytest.mark.parametrize("name", PRIVATE)
def test_members_clip_their_own_examples_as_the_loop_does(name: str) -> None:
    optimizer = {"kind": "sgd", "lr": 0.05}
    group = members(
        family(name, privacy=KEYED, optimizer=optimizer, model__dropout=0.1),
        [{}, {"privacy.clip": 0.05}, {"privacy.noise_multiplier": 0.0}],
    )
    alone, together = fit_all(group, "loop"), fit_all(group, "vmap")
    for a, b in zip(alone, together, strict=True):
        assert apart(a, b) < 1e-4, a.name


def test_private_and_other_members_train_apart() -> None:
    group = members(family("mlp"), [{}, {"privacy": {"clip": 1.0}}])
    records: list[Any] = []
    fit_all(group, "vmap", Runtime(report=records.append))
    assert [r["members"] for r in records if r.get("event") == "population"] == [1, 1]


def test_a_private_run_learns_and_reports_its_loss() -> None:
    recipe = parse(Recipe, family("mlp", privacy={"clip": 1.0, "noise_multiplier": 0.3}, train__steps=60))
    records: list[Any] = []
    result = fit(recipe, data_of(recipe).shard(), runtime=Runtime(report=records.append))
    losses = [r["loss"] for r in records if r.get("split") == "train"]
    assert losses[-1] < losses[0] and result.progress.step == 60


@pytest.mark.parametrize("field, value", [("clip", 0.0), ("clip", float("inf")), ("noise_multiplier", -1.0)])
def test_numbers_that_mean_nothing_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be"):
        ExamplePrivacy(**{field: value})  # type: ignore[arg-type]
