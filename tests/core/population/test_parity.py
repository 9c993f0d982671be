"""Members that train together get the weights and losses that `fit` gives them alone: what a population must do."""

from functools import partial
from typing import Any

import pytest
import torch

from core.population import Outcome, fit_all
from core.population.alone import fit_alone
from core.population.lockstep import fit_together
from core.runtime import Runtime
from tests.core.population.cases import IMAGES, TEXT, ZOO, apart, curve, family, members, same, weights_of

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"kind": "sgd", "lr": 0.05, "momentum": 0.0},
    "momentum": {"kind": "sgd", "lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "adam": {"kind": "adam", "lr": 1e-3, "weight_decay": 0.1},
    "adamw": {"kind": "adamw", "lr": 1e-3},
    "rmsprop": {"kind": "rmsprop", "lr": 1e-3, "momentum": 0.5},
    "lion": {"kind": "lion", "lr": 1e-4},
    "muon": {"kind": "muon", "lr": 1e-3},
}


def both(base: dict[str, Any], changes: list[dict[str, Any]]) -> tuple[list[Outcome], list[Outcome], list[Any]]:
    """Outcomes of the loop, of the population, and the records of both one after the other."""
    records: list[Any] = []
    runtime = Runtime(report=records.append)
    group = members(base, changes)
    return [fit_alone(member, runtime) for member in group], fit_together(group, runtime), records


def agree(alone: list[Outcome], together: list[Outcome], tolerance: float) -> None:
    for a, b in zip(alone, together, strict=True):
        assert apart(a, b) < tolerance, a.name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ZOO)
def test_every_family_with_every_optimizer_gives_the_weights_of_the_loop(name: str, optimizer: str) -> None:
    base = family(name, optimizer=OPTIMIZERS[optimizer])
    # a key's bias has gradient 0: lion's sign of it, and the g / |g| that muon's AdamW moves it by, are rounding
    if name == "gpt-2" and optimizer in ("lion", "muon"):
        base["model"]["bias"] = False
    alone, together, records = both(base, [{}, {"optimizer.lr": base["optimizer"]["lr"] * 0.5}])
    # an update by a sign, or by g / |g| in a first step, turns the rounding of a gradient near 0 into a whole step
    amplified = 100 if optimizer in ("adam", "adamw", "rmsprop", "lion") else 10 if optimizer == "muon" else 1
    agree(alone, together, ZOO[name][2] * amplified)
    for member in ("m0", "m1"):
        losses = curve(records, member)
        assert losses[:4] == pytest.approx(losses[4:], rel=1e-4)


KNOBS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "seed": (family("mlp"), [{}, {}, {}]),
    "learning rate": (family("mlp"), [{"seed": 0, "optimizer.lr": lr} for lr in (1e-3, 1e-2, 3e-2)]),
    "schedule": (
        family("mlp", optimizer={"kind": "sgd", "lr": 0.1}),
        [
            {"seed": 0, "schedule": s}
            for s in ({"kind": "constant"}, {"kind": "cosine", "warmup": 2}, {"kind": "linear"})
        ],
    ),
    "momentum": (
        family("mlp", optimizer={"kind": "sgd", "lr": 0.1}),
        [{"seed": 0, "optimizer.momentum": m} for m in (0.5, 0.9, 0.99)],
    ),
    "betas": (family("mlp"), [{"seed": 0, "optimizer.betas": b} for b in ([0.8, 0.9], [0.9, 0.999], [0.5, 0.99])]),
    "eps": (family("mlp"), [{"seed": 0, "optimizer.eps": e} for e in (1e-8, 1e-4, 1e-2)]),
    "weight decay": (family("mlp"), [{"seed": 0, "optimizer.weight_decay": d} for d in (0.0, 2.0, 20.0)]),
    "clip": (family("mlp", optimizer={"kind": "sgd"}), [{"seed": 0, "train.clip": c} for c in (None, 0.5, 0.05)]),
    "dropout": (family("mlp"), [{"seed": 0, "model.dropout": p} for p in (0.0, 0.2, 0.6)]),
    "dropout of a recurrent stack": (family("gru"), [{"seed": 0, "model.dropout": p} for p in (0.0, 0.3)]),
    "dropout of a gpt": (family("gpt"), [{"seed": 0, "model.dropout": p} for p in (0.1, 0.4)]),
    "label smoothing": (
        family("mlp", objective={"kind": "classification"}),
        [{"seed": 0, "objective.label_smoothing": s} for s in (0.0, 0.1, 0.5)],
    ),
    "label smoothing of tokens": (
        family("gpt", objective={"kind": "language"}),
        [{"seed": 0, "objective.label_smoothing": s} for s in (0.0, 0.2)],
    ),
    "augmentation": (
        family("mlp"),
        [{"seed": 0, "data.augment": a} for a in ({}, {"noise": 0.5}, {"crop": 2, "cutout": 3})],
    ),
    "mixup": (family("mlp"), [{"seed": 0, "data.augment.mixup": a} for a in (0.1, 1.0)]),
    "token drop": (family("gpt"), [{"seed": 0, "data.token_drop": p} for p in (0.0, 0.5)]),
    "steps": (family("mlp"), [{"seed": 0, "train.steps": s} for s in (3, 7, 1, 5)]),
}


@pytest.mark.parametrize("knob", KNOBS)
def test_each_member_has_a_knob_of_its_own(knob: str) -> None:
    base, changes = KNOBS[knob]
    alone, together, _ = both(base, changes)
    agree(alone, together, 1e-4)
    for other in together[1:]:
        assert apart(together[0], other) > 1e-3, "the knob does nothing"


def test_label_smoothing_stays_a_members_own_when_the_others_have_ended() -> None:
    base = family("mlp", objective={"kind": "classification"})
    changes = [{"train.steps": 2}, {"train.steps": 9, "objective.label_smoothing": 0.4}]
    alone, together, _ = both(base, changes)
    agree(alone, together, 1e-4)


def test_accumulation_and_ragged_last_batches_change_nothing() -> None:
    base = family("mlp", train__accumulate=3, train__batch_size=700, train__steps=5)  # 1437 digits: 700, 700, 37
    alone, together, _ = both(base, [{}, {}])
    agree(alone, together, 1e-4)


def test_members_with_less_data_than_a_batch_go_with_the_others() -> None:
    base = family("mlp", train__batch_size=200)
    small = {"data.split.validation": 0.1, "data.split.test": 0.8}
    alone, together, _ = both(base, [{}, small])
    agree(alone, together, 1e-4)


def test_frozen_parameters_stay_and_may_differ_between_members() -> None:
    base = family("mlp", freeze=["layers.0.*"])
    alone, together, _ = both(base, [{}, {}])
    agree(alone, together, 1e-4)
    assert torch.equal(weights_of(alone[1])["layers.0.weight"], weights_of(together[1])["layers.0.weight"])
    assert not torch.equal(weights_of(together[0])["layers.0.weight"], weights_of(together[1])["layers.0.weight"])


def test_a_member_starts_from_weights_it_is_given() -> None:
    base = family("cnn batch norm")
    trained = weights_of(fit_alone(members(base, [{}])[0]))
    group = members(base, [{}, {}])
    given = [type(m)(m.name, m.recipe, m.shard, trained) for m in group]
    agree([fit_alone(m) for m in given], fit_together(given), 1e-4)


def test_bfloat16_gives_what_the_loop_gives_in_bfloat16() -> None:
    alone, together, _ = both(family("mlp", train__precision="bf16"), [{}, {}])
    agree(alone, together, 2e-2)  # bfloat16 has three digits


def test_evaluations_early_stopping_and_best_weights_are_those_of_the_loop() -> None:
    train = {"steps": 60, "batch_size": 64, "evaluate_every": 5, "patience": 2, "keep": "best", "metric": "accuracy"}
    base = {**IMAGES, "model": {"kind": "mlp", "hidden": [16]}, "train": train}
    base["optimizer"] = {"kind": "sgd", "lr": 0.05}
    alone, together, records = both(base, [{}, {"optimizer.lr": 1e-3}, {"optimizer.lr": 0.5}])
    assert [o.ended for o in alone] == [o.ended for o in together]
    assert "early" in [o.ended for o in together]
    for a, b in zip(alone, together, strict=True):
        assert a.require().progress == b.require().progress
        assert apart(a, b) < 1e-3
        values = curve(records, a.name, "accuracy", "validation")
        assert values[: len(values) // 2] == pytest.approx(values[len(values) // 2 :], abs=0.02)


def test_the_executor_asked_for_is_the_one_that_runs() -> None:
    for backend in ("loop", "vmap"):
        records: list[Any] = []
        outcomes = fit_all(members(family("mlp"), [{}, {}]), backend, Runtime(report=records.append))
        assert [r["backend"] for r in records if r.get("event") == "population"] == [backend]
        assert [o.ended for o in outcomes] == ["done", "done"]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # by torch's own compiler
def test_a_compiled_step_gives_the_weights_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # all of it but the C++ compiler
    plain, compiled = (
        members(family("mlp", train__compile=wanted), [{}, {"train.steps": 2}, {}]) for wanted in (False, True)
    )
    agree([fit_alone(m) for m in plain], fit_together(compiled), 1e-4)


def test_text_windows_move_with_each_members_epochs() -> None:
    base = {**TEXT, "model": {"kind": "recurrent", "hidden": 4}, "train": {"steps": 12, "batch_size": 400}}
    alone, together, _ = both(base, [{}, {}])
    agree(alone, together, 1e-3)


def test_the_order_of_members_changes_no_bit() -> None:
    group = members(family("mlp", model__dropout=0.2), [{}, {}, {}])
    first, second = fit_together(group), fit_together(group[::-1])
    assert all(same(a, b) for a, b in zip(first, second[::-1], strict=True))
