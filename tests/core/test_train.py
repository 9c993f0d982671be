"""The one loop and the one step: how losses are averaged, what resuming means, when training stops."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.config import apply, parse
from core.data import Data, load
from core.errors import ConfigError, WorkerError
from core.learner import load_weights, start
from core.population import Member, fit_all
from core.recipe import Recipe
from core.runtime import Runtime
from core.storage.checkpoint import Checkpointer
from core.task import split
from core.train import Result, fit, train_step

BASE: dict[str, Any] = {
    "data": {"kind": "image"},
    "model": {"kind": "mlp", "hidden": [16]},
    "train": {"steps": 12, "batch_size": 100, "log_every": 1},
}


def recipe_of(**changes: Any) -> Recipe:
    return parse(Recipe, apply(BASE, {key.replace("__", "."): value for key, value in changes.items()}))


@pytest.fixture(scope="module")
def digits() -> Data:
    recipe = recipe_of()
    return load(recipe.data, "class", recipe.seed)


def curve(recipe: Recipe, data: Data) -> list[float]:
    """The loss of every step."""
    records: list[dict[str, Any]] = []
    fit(recipe, data.shard(0, 1), runtime=Runtime(report=records.append))
    return [record["loss"] for record in records if record.get("split") == "train"]


def weights_of(result: Result) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in result.task.network.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_training_learns_digits(digits: Data) -> None:
    losses = curve(recipe_of(train__steps=60, optimizer__lr=1e-2), digits)
    assert losses[-1] < losses[0] / 2


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(digits: Data) -> None:
    first, again = (weights_of(fit(recipe_of(), digits.shard(0, 1))) for _ in range(2))
    other = weights_of(fit(recipe_of(seed=1), digits.shard(0, 1)))
    assert same(first, again)
    assert not same(first, other)


def test_a_step_divides_the_weighted_losses_by_the_sum_of_weights(digits: Data) -> None:
    recipe = recipe_of(optimizer={"kind": "sgd", "momentum": 0.0, "lr": 1.0})
    batch = digits.shard(0, 1).batch(recipe.train, 0)
    batch["weight"] = torch.linspace(0, 3, len(batch["weight"]))
    learner = start(recipe, digits.spec)
    before = {name: p.detach().clone() for name, p in learner.task.named_parameters()}
    losses, _ = learner.task(batch)
    expected = (losses * batch["weight"]).sum() / batch["weight"].sum()
    gradients = torch.autograd.grad(expected, list(learner.task.parameters()))
    outcome = train_step(learner, batch, recipe, measure=True)
    assert outcome.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for (name, parameter), gradient in zip(learner.task.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.detach(), before[name] - gradient)


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_accumulation_gives_the_step_of_the_whole_batch(digits: Data, parts: int) -> None:
    whole = weights_of(fit(recipe_of(), digits.shard(0, 1)))
    accumulated = weights_of(fit(recipe_of(train__accumulate=parts), digits.shard(0, 1)))
    for name in whole:
        torch.testing.assert_close(accumulated[name], whole[name], rtol=1e-5, atol=1e-6)


def test_split_keeps_every_row_once_and_in_order() -> None:
    batch = {"weight": torch.arange(10.0), "inputs": torch.arange(20.0).view(10, 2)}
    parts = split(batch, 3)
    assert [len(part["weight"]) for part in parts] == [4, 3, 3]
    assert torch.equal(torch.cat([part["inputs"] for part in parts]), batch["inputs"])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": {"kind": "mlp", "hidden": [16], "dropout": 0.3}, "train__accumulate": 2, "train__clip": 0.5},
        {"data__augment": {"crop": 1, "mixup": 0.2}, "optimizer": {"kind": "sgd", "lr": 0.1}},
        {"schedule": {"kind": "cosine", "warmup": 3}, "optimizer": {"kind": "lion"}},
        {"optimizer": {"kind": "muon"}},
    ],
    ids=["plain", "dropout accumulation clipping", "augmentation momentum", "schedule lion", "muon"],
)
@pytest.mark.parametrize("stop", [1, 5, 11])
def test_a_stopped_run_resumes_to_the_same_bits(tmp_path: Path, changes: dict[str, Any], stop: int) -> None:
    recipe = recipe_of(**changes)
    data = load(recipe.data, "class", recipe.seed)
    undisturbed = weights_of(fit(recipe, data.shard(0, 1)))
    asked: list[int] = []
    runtime = Runtime(report=lambda r: asked.append(r["step"]), should_stop=lambda: asked[-1] >= stop)
    with Checkpointer(tmp_path) as checkpoints:
        first = fit(recipe, data.shard(0, 1), runtime=runtime, checkpoints=checkpoints)
    assert (first.ended, first.progress.step) == ("stopped", stop)
    records: list[dict[str, Any]] = []
    with Checkpointer(tmp_path) as checkpoints:
        second = fit(recipe, data.shard(0, 1), runtime=Runtime(report=records.append), checkpoints=checkpoints)
    assert records[0] == {"event": "started", "step": stop}
    assert second.ended == "done"
    assert same(weights_of(second), undisturbed)


def test_a_finished_run_is_not_trained_again(tmp_path: Path, digits: Data) -> None:
    with Checkpointer(tmp_path) as checkpoints:
        first = weights_of(fit(recipe_of(), digits.shard(0, 1), checkpoints=checkpoints))
        again = fit(recipe_of(), digits.shard(0, 1), checkpoints=checkpoints)
    assert again.ended == "done"
    assert same(weights_of(again), first)


def test_a_loss_that_is_not_finite_stops_and_names_the_layer(tmp_path: Path, digits: Data) -> None:
    recipe = recipe_of(optimizer={"kind": "sgd", "lr": 1e30}, train__checkpoint_every=1)
    with Checkpointer(tmp_path) as checkpoints, pytest.raises(WorkerError, match=r"not finite at step \d+ .* first in"):
        fit(recipe, digits.shard(0, 1), checkpoints=checkpoints)
    restored = Checkpointer(tmp_path).load_latest()
    assert restored.snapshot is not None
    assert all(torch.isfinite(t).all() for t in restored.snapshot.tensors["model"].values())


def test_weights_that_are_not_finite_are_never_saved_though_the_loss_was(tmp_path: Path) -> None:
    recipe = recipe_of(
        data={"kind": "table", "path": "bundled:diabetes", "normalize": False},
        objective={"kind": "regression"},
        optimizer={"kind": "sgd", "lr": 1e37},
        train__checkpoint_every=1,
    )
    data = load(recipe.data, "real", recipe.seed)
    with Checkpointer(tmp_path) as checkpoints:
        with pytest.raises(WorkerError, match="weights are not finite after step 1"):
            fit(recipe, data.shard(), checkpoints=checkpoints)
        assert checkpoints.load_latest().snapshot is None


def test_a_batch_of_weight_zero_moves_nothing(digits: Data) -> None:
    recipe = recipe_of(optimizer={"kind": "sgd"})
    learner = start(recipe, digits.spec)
    before = {name: t.clone() for name, t in learner.task.state_dict().items()}
    batch = digits.shard().batch(recipe.train, 0)
    batch["weight"] = torch.zeros_like(batch["weight"])
    train_step(learner, batch, recipe)
    assert same(before, learner.task.state_dict())


def test_training_works_without_a_validation_split_unless_the_recipe_decides_by_it() -> None:
    split = {"data__split": {"validation": 0.0, "test": 0.1}}
    recipe = recipe_of(**split, train__evaluate_every=5)
    assert fit(recipe, load(recipe.data, "class").shard()).ended == "done"
    recipe = recipe_of(**split, train__evaluate_every=5, train__keep="best")
    with pytest.raises(ConfigError, match=r"data\.split\.validation: is empty"):
        fit(recipe, load(recipe.data, "class").shard())


def test_a_warmup_longer_than_the_training_is_refused_with_the_config() -> None:
    with pytest.raises(ConfigError, match="warmup"):
        recipe_of(schedule={"kind": "cosine", "warmup": 13})


def test_a_batch_with_nan_is_blamed_on_the_input(digits: Data) -> None:
    recipe = recipe_of()
    batch = digits.shard(0, 1).batch(recipe.train, 0)
    batch["inputs"] = batch["inputs"].clone().fill_(float("nan"))
    with pytest.raises(WorkerError, match="first in the input"):
        train_step(start(recipe, digits.spec), batch, recipe)


def test_training_stops_early_when_the_metric_no_longer_improves(digits: Data) -> None:
    stuck = recipe_of(optimizer={"kind": "sgd", "lr": 1e-12}, train__evaluate_every=2, train__patience=2)
    result = fit(stuck, digits.shard(0, 1))
    assert result.ended == "early"
    assert result.progress.step < stuck.train.steps


def test_an_unknown_metric_is_refused_with_the_known_ones(digits: Data) -> None:
    with pytest.raises(ConfigError, match="'bleu' is not measured for classification; choose one of loss"):
        fit(recipe_of(train__metric="bleu"), digits.shard(0, 1))


def test_frozen_parameters_do_not_move(digits: Data) -> None:
    learner = start(recipe_of(), digits.spec)
    names = list(learner.task.network.state_dict())
    frozen = fit(recipe_of(freeze=[names[0]]), digits.shard(0, 1))
    assert torch.equal(weights_of(frozen)[names[0]], learner.task.network.state_dict()[names[0]])
    assert not torch.equal(weights_of(frozen)[names[-1]], learner.task.network.state_dict()[names[-1]])


def test_a_freeze_pattern_without_a_match_is_refused(digits: Data) -> None:
    with pytest.raises(ConfigError, match="freeze: 'encoder"):
        start(recipe_of(freeze=["encoder.*"]), digits.spec)


def test_freezing_everything_is_refused(digits: Data) -> None:
    with pytest.raises(ConfigError, match="every parameter is frozen"):
        start(recipe_of(freeze=["*"]), digits.spec)


def test_weights_are_taken_over_where_they_fit_and_the_rest_is_reported(digits: Data) -> None:
    source = start(recipe_of(), digits.spec).task.network.state_dict()
    head = list(source)[-1]
    given = {name: t + 1 for name, t in source.items()} | {head: torch.zeros(3), "extra": torch.zeros(1)}
    task = start(recipe_of(), digits.spec).task
    loaded = load_weights(task, given)
    assert loaded.fresh == (head,)
    assert set(loaded.unused) == {head, "extra"}
    name = loaded.loaded[0]
    assert torch.equal(task.network.state_dict()[name], given[name])


def test_weights_of_another_model_are_refused(digits: Data) -> None:
    with pytest.raises(ConfigError, match="init: no tensor of these weights fits"):
        load_weights(start(recipe_of(), digits.spec).task, {"other": torch.zeros(1)})


def test_a_layer_whose_gradient_vanishes_is_named_once(digits: Data) -> None:
    records: list[dict[str, Any]] = []
    recipe = recipe_of(model={"kind": "mlp", "hidden": [16, 16]}, train__steps=30)
    task = recipe.build(digits.spec)
    weights = {name: t.clone() for name, t in task.network.state_dict().items()}
    last = [name for name in weights if name.endswith("weight")][-1]
    weights[last] *= 1e-12  # nothing passes back through the head
    fit(recipe, digits.shard(0, 1), weights, Runtime(report=records.append))
    warnings = [r["message"] for r in records if r.get("event") == "warning"]
    assert len(warnings) == 1
    assert "vanishes" in warnings[0]
    assert "0.weight" in warnings[0]
    assert last not in warnings[0]


def test_bf16_trains_close_to_fp32(digits: Data) -> None:
    losses = {p: curve(recipe_of(train__precision=p), digits) for p in ("fp32", "bf16")}
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses["bf16"] != losses["fp32"]


def test_fp16_without_cuda_is_refused(digits: Data) -> None:
    with pytest.raises(ConfigError, match=r"train\.precision: fp16 needs a CUDA device"):
        start(recipe_of(train__precision="fp16"), digits.spec)


def test_the_records_of_a_run_carry_what_a_reader_needs(digits: Data) -> None:
    records: list[dict[str, Any]] = []
    recipe = recipe_of(train__clip=0.01, train__evaluate_every=6)
    fit(recipe, digits.shard(0, 1), runtime=Runtime(report=records.append))
    train = [r for r in records if r.get("split") == "train"]
    assert [r["step"] for r in train] == list(range(1, 13))
    assert {"loss", "lr", "grad_norm", "clipped_share", "examples_per_s", "eta_s", "memory_bytes"} <= set(train[-1])
    assert train[-1]["clipped_share"] == 1.0
    validation = [r for r in records if r.get("split") == "validation"]
    assert [r["step"] for r in validation] == [6, 12]
    assert validation[-1]["accuracy"] > 0.1


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_a_metric_that_cannot_be_measured_is_said_once_and_costs_no_patience(backend: Any) -> None:
    undefined = {"train__metric": "r2", "train__patience": 2, "train__evaluate_every": 2, "train__keep": "best"}
    table = {"kind": "table", "path": "bundled:diabetes", "split": {"validation": 0.003}}  # one row: it has no r2
    recipe = recipe_of(data=table, objective={"kind": "regression"}, **undefined)
    data, records = load(recipe.data, "real", recipe.seed), list[dict[str, Any]]()
    assert data.sizes["validation"] == 1
    members = [Member(name, recipe, data.shard()) for name in "ab"]
    outcomes = fit_all(members, backend, Runtime(report=records.append))
    assert [outcome.ended for outcome in outcomes] == ["done", "done"]
    said = [record for record in records if record.get("event") == "note"]
    assert [record["member"] for record in said] == ["a", "b"]
    assert "train.metric: r2 could not be measured: all targets of the validation split are equal" in said[0]["message"]
