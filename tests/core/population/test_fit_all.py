"""Which executor runs, what is said about it, and what happens to members that cannot go together."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from core.config import override
from core.data import Spec
from core.errors import ConfigError, WorkerError
from core.population import Member, fit_all
from core.population import choose as choosing
from core.population.fit import buckets
from core.population.memory import members_at_once
from core.population.recorded import WORTH
from core.recipe import Recipe
from core.runtime import Runtime
from tests.core.population.cases import apart, data_of, family, member, members


@pytest.fixture(autouse=True)
def _nothing_is_known_from_before() -> None:
    choosing.forget()


def said(records: list[Any], event: str = "population") -> list[Any]:
    return [record for record in records if record.get("event") == event]


def fitted(group: list[Member], backend: Any = "auto", **options: Any) -> tuple[list[Any], list[Any]]:
    records: list[Any] = []
    return fit_all(group, backend, Runtime(report=records.append), **options), records


def test_auto_takes_the_faster_of_both_and_says_which_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    for loop_s, backend in ((1.0, "vmap"), (0.0, "loop")):
        choosing.forget()
        monkeypatch.setattr(choosing, "_loop_seconds", lambda member, runtime, count, seconds=loop_s: seconds)
        outcomes, records = fitted(members(family("mlp"), [{}] * 3))
        assert said(records)[0]["backend"] == backend
        assert "ms together" in said(records)[0]["reason"]
        assert [outcome.ended for outcome in outcomes] == ["done"] * 3


def test_auto_times_members_of_one_kind_once(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[int] = []
    monkeypatch.setattr(choosing, "_loop_seconds", lambda member, runtime, count: timed.append(1) or 1.0)
    for _ in range(2):
        _, records = fitted(members(family("mlp"), [{}] * 3))
    assert len(timed) == 1
    assert said(records)[0]["reason"].endswith("(known from before)")


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


def test_no_step_is_recorded_while_executors_are_timed() -> None:
    assert WORTH > 1 + choosing.MOST


@pytest.mark.parametrize(
    "seconds, steps, backend",
    [
        ([9.0, 9.0, 2.1, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 9, "vmap"),
        ([9.0, 2.7, 2.8], 3, "loop"),  # clearly slower than two that take 1 s each
        ([9.0, 2.1, 2.1, 2.1], 4, "loop"),
        ([9.0, 2.1, 2.1, 1.0, 1.0, 1.0, 1.0, 9.0, 1.0], 9, "vmap"),  # a pause does not count
        ([9.0, *[1.95] * 8], 9, "loop"),  # no clear gain
    ],
)
def test_as_many_steps_are_timed_together_as_it_takes_to_tell(
    seconds: list[float], steps: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = list(seconds)
    monkeypatch.setattr(choosing, "_loop_seconds", lambda member, runtime, count: 1.0)
    monkeypatch.setattr(choosing, "_seconds", lambda step, runtime: (step(), left.pop(0))[1])
    choice, _ = choosing.choose(members(family("mlp", train__steps=400), [{}, {}]), "auto")
    assert (choice.backend, len(seconds) - len(left)) == (backend, steps)


@pytest.mark.parametrize("steps, expected", [(1, math.inf), (3, math.inf), (4, 3.0), (5, 4.0)])
def test_a_member_that_diverges_is_timed_by_the_steps_before(
    steps: int, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = iter(range(1, steps + 1))

    def seconds(step: object, runtime: Runtime) -> float:
        for found in taken:
            return float(found)
        raise WorkerError("training: the loss is not finite")

    monkeypatch.setattr(choosing, "ALONE_S", 60.0)
    monkeypatch.setattr(choosing, "_seconds", seconds)
    member = members(family("mlp", train__steps=400), [{}])[0]
    assert choosing._loop_seconds(member, Runtime(), count=3) == expected


def test_steps_that_were_timed_together_are_not_made_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "_loop_seconds", lambda member, runtime, count: 1e9)
    group = members(family("mlp", train__steps=9), [{}, {"train.steps": 2}, {}])
    auto, records = fitted(group)
    steps = [r["step"] for r in records if r.get("member") == "m0" and r.get("split") == "train"]
    assert steps == list(range(1, 10)) and records[0]["event"] == "population"
    together, _ = fitted(group, "vmap")
    assert max(apart(a, b) for a, b in zip(auto, together, strict=True)) == 0


def test_a_run_that_is_stopped_while_its_members_are_timed_keeps_those_that_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(choosing, "_loop_seconds", lambda member, runtime, count: asked.append(1) or 1e9)
    group = members(family("mlp", train__steps=9), [{}, {"train.steps": 2}, {}])
    outcomes = fit_all(group, "auto", Runtime(should_stop=lambda: bool(asked)))
    assert [outcome.ended for outcome in outcomes] == ["stopped", "done", "stopped"]
    assert outcomes[0].require().progress.step > 2


@pytest.mark.parametrize("steps", [1, 2])
def test_members_that_end_while_they_are_timed_have_ended(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "_loop_seconds", lambda member, runtime, count: 0.0)
    group = members(family("mlp", train__steps=steps), [{}, {}])
    ended: list[str] = []
    first, records = fitted(group, finished=lambda outcome: ended.append(outcome.name))
    again, later = fitted(group)
    assert ended == ["m0", "m1"] and [said(r)[0]["backend"] for r in (records, later)] == ["vmap", "loop"]
    assert max(apart(a, b) for a, b in zip(first, again, strict=True)) < 1e-4


def test_members_of_which_memory_hardly_holds_one_train_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(choosing, "members_at_once", full)
    outcomes, records = fitted(members(family("mlp"), [{}] * 3))
    assert said(records)[0]["reason"] == "memory does not suffice for two members at once"
    assert [outcome.ended for outcome in outcomes] == ["done"] * 3


def test_a_probe_that_runs_out_of_memory_is_made_again_with_half_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    whole = choosing.Lockstep

    def scarce(group: list[Member], *others: Any) -> Any:
        sizes.append(len(group))
        if len(group) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(group, *others)

    monkeypatch.setattr(choosing, "Lockstep", scarce)
    monkeypatch.setattr(choosing, "_loop_seconds", lambda member, runtime, count: 1e9)
    outcomes, records = fitted(members(family("mlp"), [{}] * 5))
    assert sizes == [5, 3, 2] and said(records)[0]["members_at_once"] == 2
    assert [outcome.ended for outcome in outcomes] == ["done"] * 5


def test_batches_count_where_they_are_not_prepared_beside_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = choosing.Lockstep

    def slow_data(*arguments: Any) -> Any:
        lockstep = whole(*arguments)
        prepare = lockstep.feed._prepare

        def prepare_slowly() -> None:
            prepare()
            lockstep.feed.pace = 1e6

        lockstep.feed._prepare = prepare_slowly
        return lockstep

    monkeypatch.setattr(choosing, "Lockstep", slow_data)
    _, records = fitted(members(family("mlp", train__steps=20), [{}, {}]))
    assert said(records)[0]["backend"] == "loop" and "1e+09 ms together" in said(records)[0]["reason"]
