"""Which executor runs, what is said about it, and what happens to members that cannot go together."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from core.config import override
from core.data import Spec
from core.errors import ConfigError
from core.population import Member, executor, fit_all
from core.population.fit import buckets
from core.population.memory import members_at_once
from core.recipe import Recipe
from core.runtime import Runtime
from tests.core.population.cases import apart, data_of, family, member, members


def said(records: list[Any], event: str = "population") -> list[Any]:
    return [record for record in records if record.get("event") == event]


def fitted(group: list[Member], backend: Any = "auto", **options: Any) -> tuple[list[Any], list[Any]]:
    records: list[Any] = []
    return fit_all(group, backend, Runtime(report=records.append), **options), records


@pytest.mark.parametrize(
    "name, large, backend", [("mlp", {}, "vmap"), ("mlp", {"model.hidden": [2048, 2048]}, "loop"), ("lstm", {}, "loop")]
)
def test_the_recipe_decides_which_executor_is_faster_and_never_a_clock(
    name: str, large: dict[str, Any], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = members(family(name, train__steps=2), [large] * 3)
    twice = [fitted(group), fitted(group)]
    for _, records in twice:
        assert said(records)[0]["backend"] == backend and said(records)[0]["reason"]
    assert all(apart(a, b) == 0 for a, b in zip(twice[0][0], twice[1][0], strict=True))


def test_a_population_has_at_most_so_many_rows_and_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (executor.rows_at_once(1_000), executor.rows_at_once(10**7), executor.rows_at_once(10**9)) == (64, 6, 1)
    monkeypatch.setattr(executor, "MOST_ROWS", 2)
    outcomes, records = fitted(members(family("mlp"), [{}] * 5))
    assert said(records)[0]["members_at_once"] == 2 and [outcome.ended for outcome in outcomes] == ["done"] * 5


def test_one_member_trains_in_the_ordinary_loop() -> None:
    _, records = fitted(members(family("mlp"), [{}]))
    assert said(records)[0] == {
        "event": "population", "members": 1, "backend": "loop", "reason": "there is one member",
    }  # fmt: skip


def test_members_of_different_shapes_go_in_populations_of_their_own() -> None:
    group = members(family("mlp"), [{}, {"model.hidden": [8]}, {}, {"optimizer": {"kind": "sgd"}}])
    assert [[m.name for m in bucket] for bucket in buckets(group)] == [["m0", "m2"], ["m1"], ["m3"]]
    outcomes, records = fitted(group, "vmap")
    assert [outcome.name for outcome in outcomes] == ["m0", "m1", "m2", "m3"]
    assert [record["members"] for record in said(records)] == [2, 1, 1]


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer.nesterov": True},
        {"optimizer.momentum": 0.0},
        {"optimizer.decay_vectors": True},
        {"train.accumulate": 2},
        {"train.precision": "bf16"},
        {"freeze": ["head.*"]},
        {"privacy": {"clip": 1.0}},
    ],
    ids=str,
)
def test_what_is_no_mere_number_keeps_members_apart(change: dict[str, Any]) -> None:
    group = members(family("mlp", optimizer={"kind": "sgd", "momentum": 0.9}), [{}, change, {}])
    assert [[m.name for m in bucket] for bucket in buckets(group)] == [["m0", "m2"], ["m1"]]


def test_batch_norm_does_not_meet_fill_that_it_would_not_meet_alone() -> None:
    base = family("cnn batch norm", train__batch_size=200)
    group = members(base, [{}, {"data.split.test": 0.8}])  # 1437 and 180 examples
    assert [len(bucket) for bucket in buckets(group)] == [1, 1]
    alone, together = fitted(group, "loop")[0], fitted(group, "vmap")[0]
    assert max(apart(a, b) for a, b in zip(alone, together, strict=True)) < 1e-4


def test_more_members_than_memory_holds_train_in_parts_with_the_same_numbers() -> None:
    group = members(family("mlp"), [{}] * 5)
    _, each = members_at_once(group[0], torch.device("cpu"))
    all_at_once, _ = fitted(group, "vmap")
    in_parts, records = fitted(group, "vmap", free_bytes=4 * each)  # half of it may be used
    assert said(records)[0]["members_at_once"] == 2 and said(records)[0]["bytes_per_member"] == each
    assert max(apart(a, b) for a, b in zip(all_at_once, in_parts, strict=True)) < 1e-5
    one_by_one, records = fitted(group, "vmap", free_bytes=1)
    assert said(records)[0]["members_at_once"] == 1
    assert max(apart(a, b) for a, b in zip(all_at_once, one_by_one, strict=True)) < 1e-5


def test_a_population_that_runs_out_of_memory_goes_on_with_half_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    from core.population import fit

    sizes: list[int] = []

    def scarce(group: list[Member], *others: Any) -> Any:
        sizes.append(len(group))
        if len(group) > 2:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate")
        return together(group, *others)

    together = fit.fit_together
    monkeypatch.setattr(fit, "fit_together", scarce)
    outcomes, records = fitted(members(family("mlp"), [{}] * 5), "vmap")
    assert sizes == [5, 3, 2, 2, 1] and [o.ended for o in outcomes] == ["done"] * 5
    assert len(said(records, "warning")) == 2


def test_a_member_that_ended_before_memory_ran_out_is_not_trained_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from core.population import Population

    made: list[int] = []

    def scarce(population: Population, *args: Any, **options: Any) -> Any:
        made.append(len(population))
        if len(made) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(population, *args, **options)

    step = Population.step
    monkeypatch.setattr(Population, "step", scarce)
    ended: list[str] = []
    group = members(family("mlp", train__steps=6), [{}, {"train.steps": 2}, {}])
    outcomes = fit_all(group, "vmap", finished=lambda outcome: ended.append(outcome.name))
    assert made == [2, 3, 3, 2, *[2] * 6] and ended == [
        "m1",
        "m0",
        "m2",
    ]  # the first looks for operations without a rule
    assert [outcome.require().progress.step for outcome in outcomes] == [6, 2, 6]


def test_a_member_with_few_examples_does_not_say_how_much_memory_the_others_take() -> None:
    few = {"data.split.validation": 0.1, "data.split.test": 0.89}
    small, large = members(family("mlp", train__batch_size=1000), [few, {}])
    (_, least), (_, most) = (members_at_once(m, torch.device("cpu")) for m in (small, large))
    _, records = fitted([small, large], "vmap")
    assert least < most == said(records)[0]["bytes_per_member"]


# --- models that cannot be stacked ---------------------------------------------------------------------------------


class Awkward(nn.Module):
    """A linear model with an operation that vmap has no rule for, reads a value, or draws noise of its own."""

    def __init__(self, how: str, inputs: int, outputs: int) -> None:
        super().__init__()
        self.how, self.linear = how, nn.Linear(inputs, outputs)

    def forward(self, inputs: Tensor, key: Tensor | None = None) -> Tensor:
        x: Tensor = self.linear(inputs.flatten(1))
        if self.how == "no rule":
            x = x + 0 * torch.histc(x.detach(), bins=4).sum()
        if self.how == "reads a value":
            x = x * (1.0 if x.sum().item() > 1e9 else 2.0)
        if self.how == "noise":
            x = nn.functional.dropout(x, 0.5)
        return x


@dataclass(frozen=True)
class AwkwardConfig:
    how: str
    kind: Literal["awkward"] = "awkward"

    def build(self, spec: Spec) -> Awkward:
        return Awkward(self.how, 64, spec.outputs)


@pytest.mark.parametrize("backend", ["auto", "vmap"])
@pytest.mark.parametrize("how", ["no rule", "reads a value", "noise"])
def test_a_model_that_cannot_be_stacked_trains_in_the_loop_and_the_run_says_so(how: str, backend: str) -> None:
    base = members(family("mlp"), [{}, {}])
    group = [
        Member(m.name, Recipe(data=m.recipe.data, model=AwkwardConfig(how), train=m.recipe.train), m.shard)  # type: ignore[arg-type]
        for m in base
    ]
    outcomes, records = fitted(group, backend)
    assert [outcome.ended for outcome in outcomes] == ["done", "done"]
    event = said(records)[0]
    assert event["backend"] == "loop" and event["reason"].startswith("these members cannot be stacked: ")
    assert "\n" not in event["reason"]


# --- refusals and stops --------------------------------------------------------------------------------------------


def test_no_members_are_refused() -> None:
    with pytest.raises(ConfigError, match="there are no members"):
        fit_all([])


def test_two_members_of_one_name_are_refused() -> None:
    one = members(family("mlp"), [{}])[0]
    with pytest.raises(ConfigError, match="two members are called m0"):
        fit_all([one, one])


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_a_run_that_is_stopped_ends_its_members_and_begins_no_others(backend: str) -> None:
    seen: list[int] = []
    runtime = Runtime(report=lambda record: seen.append(1), should_stop=lambda: len(seen) > 4)
    outcomes = fit_all(members(family("mlp", train__steps=500), [{}] * 3), backend, runtime)  # type: ignore[arg-type]
    assert [outcome.ended for outcome in outcomes] == ["stopped"] * 3
    if backend == "loop":
        assert outcomes[0].require().progress.step > 0
        with pytest.raises(Exception, match="member m2 was stopped before it began"):
            outcomes[2].require()


def test_a_member_without_a_validation_split_to_decide_by_is_refused() -> None:
    recipe = override(members(family("mlp"), [{}])[0].recipe, {"data.split.validation": 0.0, "train.evaluate_every": 1})
    impatient = override(recipe, {"train.patience": 1})
    for backend in ("loop", "vmap"):
        with pytest.raises(ConfigError, match=r"data\.split\.validation: is empty"):
            fit_all([Member("m0", impatient, data_of(impatient).shard())], backend)  # type: ignore[arg-type]
    assert fit_all([member(recipe, "m0")])[0].ended == "done"


def test_members_of_which_memory_hardly_holds_one_train_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(executor, "members_at_once", full)
    outcomes, records = fitted(members(family("mlp"), [{}] * 3))
    assert said(records)[0]["reason"] == "memory does not suffice for two members at once"
    assert [outcome.ended for outcome in outcomes] == ["done"] * 3
