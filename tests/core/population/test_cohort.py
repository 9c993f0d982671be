"""Cohorts: short fits from given weights, again and again, held to `fit`; and recordings of a step."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from core.config import override, parse
from core.data import Data, load
from core.data.examples import Stacked
from core.population import recorded
from core.population.cohort import Cohort, Job
from core.population.executor import executor_for, require_stackable
from core.population.feed import Feed
from core.population.member import Member
from core.population.population import Population
from core.population.recorded import WORTH, Recording
from core.recipe import Recipe
from core.train import fit
from tests.core.population.cases import ZOO

FAMILIES = ["mlp", "cnn", "resnet", "gpt"]


def recipe(name: str, **changes: Any) -> Recipe:
    sgd = {"optimizer.kind": "sgd", "optimizer.lr": 0.05, "optimizer.momentum": 0.5}
    base, model, _ = ZOO[name]
    found = parse(Recipe, {**base, "model": model})
    return override(found, {**sgd, "train.batch_size": 8, **{k.replace("__", "."): v for k, v in changes.items()}})


def training(data: Data, seed: int) -> Data:
    empty = {name: replace_empty(examples) for name, examples in data.splits.items() if name != "train"}
    return replace(data, seed=seed, splits={"train": data.splits["train"], **empty})


def replace_empty(examples: Any) -> Any:
    class Nothing:
        weight, is_costly = None, False

        def __len__(self) -> int:
            return 0

    return Nothing()


def jobs_of(found: Recipe, count: int = 5, **more: Any) -> tuple[Data, list[Job]]:
    data = load(found.data, found.goal.target, found.seed)
    return data, [Job(str(i), training(data, i).shard(), 2 + i % 3, **more) for i in range(count)]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_a_cohort_gives_each_job_what_fit_gives_it(name: str, executor: Any) -> None:
    found = recipe(name)
    data, jobs = jobs_of(found)
    cohort = Cohort(found, data.spec, executor)
    weights = cohort.frame.vector(cohort.learner.task)
    for _ in range(2):  # the second time with what the first has left behind
        trained = cohort.train(weights, jobs)
    for job, one in zip(jobs, trained, strict=True):
        alone = override(found, {"train.steps": job.steps, "train.checkpoint_every": 0})
        result = fit(alone, job.shard, cohort.frame.named(weights))
        torch.testing.assert_close(one.vector, cohort.frame.vector(result.task), rtol=0, atol=3e-5)
        assert one.loss == pytest.approx(result.loss, abs=1e-5) and one.error is None


@pytest.mark.parametrize("model", ["cnn", "resnet"])
@pytest.mark.parametrize("norm", ["none", "group", "batch"])
def test_loop_and_vmap_differ_by_rounding_whatever_the_norm_and_the_sizes(model: str, norm: str) -> None:
    found = recipe(model, model__norm=norm)
    data, _ = jobs_of(found, 1)
    own_data, jobs = training(data, 0), list[Job]()
    train = data.splits["train"]
    assert isinstance(train, Stacked)
    for i, size in enumerate((20, 3, 8, 5, 3, 2)):  # 8 rows are a whole batch
        own = Stacked(train.inputs[i * 20 :][:size], train.targets[i * 20 :][:size])  # type: ignore[index]
        jobs.append(Job(str(i), replace(own_data, splits={**own_data.splits, "train": own}).shard(), 3))
    loop, vmap = (Cohort(found, data.spec, executor) for executor in ("loop", "vmap"))
    weights = loop.frame.vector(loop.learner.task)
    for one, other in zip(loop.train(weights, jobs), vmap.train(weights, jobs), strict=True):
        moved = (one.vector - weights).norm()
        assert (one.vector - other.vector).norm() < 1e-4 * moved


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_batch_statistics_begin_and_end_in_the_vector(executor: Any) -> None:
    found = recipe("cnn", model__norm="batch")
    data, jobs = jobs_of(found)
    cohort = Cohort(found, data.spec, executor)
    weights = cohort.frame.vector(cohort.learner.task)
    assert cohort.frame.size > cohort.frame.trainable
    first, again = cohort.train(weights, jobs), cohort.train(weights, jobs)
    statistics = slice(cohort.frame.trainable, None)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.vector, other.vector)
        assert not torch.equal(one.vector[statistics], weights[statistics])


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_jobs_are_pulled_and_pushed_as_written_out(executor: Any) -> None:
    found = recipe("mlp", optimizer__momentum=0.0)
    data, _ = jobs_of(found, 1)
    cohort = Cohort(found, data.spec, executor)
    weights = cohort.frame.vector(cohort.learner.task)
    anchor, shift = weights + 1.0, torch.linspace(-1, 1, cohort.frame.trainable)
    plain = [Job(str(i), training(data, i).shard(), 1) for i in range(3)]
    pulled = [replace(job, strength=0.5, anchor=anchor, shift=shift) for job in plain]
    for free, bound in zip(cohort.train(weights, plain), cohort.train(weights, pulled), strict=True):
        wanted = free.vector - 0.05 * (0.5 * (weights - anchor) + shift)
        torch.testing.assert_close(bound.vector, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_a_job_may_begin_elsewhere_and_the_rate_may_be_a_share(executor: Any) -> None:
    found = recipe("mlp", optimizer__momentum=0.0)
    data, _ = jobs_of(found, 1)
    cohort = Cohort(found, data.spec, executor)
    weights = cohort.frame.vector(cohort.learner.task)
    other = weights * 0.5
    jobs = [Job("a", training(data, 1).shard(), 1), Job("b", training(data, 1).shard(), 1, start=other)]
    here, there = cohort.train(weights, jobs)
    again, _ = cohort.train(other, jobs)
    torch.testing.assert_close(there.vector, again.vector, rtol=0, atol=1e-7)
    half, _ = cohort.train(weights, jobs, factor=0.5)
    torch.testing.assert_close(half.vector - weights, 0.5 * (here.vector - weights), rtol=0, atol=1e-7)


@pytest.mark.parametrize("executor", ["loop", "vmap"])
def test_a_job_that_diverges_says_so_and_leaves_the_others_alone(executor: Any) -> None:
    found = recipe("mlp")
    data, jobs = jobs_of(found, 3)
    cohort = Cohort(found, data.spec, executor)
    weights = cohort.frame.vector(cohort.learner.task)
    sound = cohort.train(weights, jobs)
    broken: Tensor = weights.clone()
    broken[0] = float("nan")
    mixed = cohort.train(weights, [jobs[0], replace(jobs[1], start=broken), jobs[2]])
    assert mixed[1].error is not None and "not finite" in mixed[1].error
    for i in (0, 2):
        torch.testing.assert_close(mixed[i].vector, sound[i].vector, rtol=0, atol=1e-6)


def test_the_executor_is_a_rule_and_not_a_race() -> None:
    cpu = torch.device("cpu")
    small, large = recipe("mlp"), recipe("mlp", model__hidden=[2048, 2048], train__batch_size=256)
    spec = load(small.data, small.goal.target, 0).spec
    assert executor_for(small, spec, cpu) == "vmap" and executor_for(large, spec, cpu) == "loop"
    text = recipe("gpt")
    require_stackable(text, training(load(text.data, "token", 0), 0).shard())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_recorded_step_is_the_step_to_the_last_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "IMPORT_S", 0.0)
    monkeypatch.setattr(recorded, "SMALL_S", 60.0)
    found = recipe(name)
    data = load(found.data, found.goal.target, 0)
    members = [Member(str(i), found, training(data, i).shard()) for i in range(3)]
    played, plain = Population(members), Population(members)
    plain._recording = lambda function, *inputs: function(*inputs)  # type: ignore[assignment]
    feed = Feed(members, torch.device("cpu"), played.is_noisy)
    for _ in range(WORTH + 3):
        batch = feed.take()
        assert torch.equal(played.step(batch).losses, plain.step(batch).losses)
    assert torch.equal(played.rows, plain.rows)
    assert any(played._recording.played.values()), "something was recorded"


def test_nothing_is_recorded_before_steps_took_as_long_as_the_import_of_the_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recorded, "COMPILER", "not.imported")
    monkeypatch.setattr(Recording, "spent_s", 0.0)
    found = recipe("mlp")
    data = load(found.data, found.goal.target, 0)
    members = [Member(str(i), found, training(data, i).shard()) for i in range(2)]
    population = Population(members)
    feed = Feed(members, torch.device("cpu"), population.is_noisy)
    for _ in range(WORTH + 1):
        population.step(feed.take())
    assert not population._recording.played
    monkeypatch.setattr(Recording, "spent_s", recorded.IMPORT_S)
    monkeypatch.setattr(recorded, "SMALL_S", 0.0)
    population.step(feed.take())
    assert not population._recording.played, "these steps are not small"
    monkeypatch.setattr(recorded, "SMALL_S", 60.0)
    population.step(feed.take())
    assert population._recording.played


def test_what_was_recorded_is_forgotten_when_a_number_in_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "IMPORT_S", 0.0)
    monkeypatch.setattr(recorded, "SMALL_S", 60.0)
    found = recipe("mlp", model__dropout=0.5)
    data = load(found.data, found.goal.target, 0)
    members = [Member(str(i), found, training(data, i).shard()) for i in range(2)]
    population = Population(members)
    feed = Feed(members, torch.device("cpu"), True)
    for _ in range(WORTH + 2):
        population.step(feed.take())
    assert population._recording.played
    other = [Member(m.name, override(found, {"model.dropout": 0.1}), m.shard) for m in members]
    for row, member in enumerate(other):
        population.change(row, member)
    assert not population._recording.played
