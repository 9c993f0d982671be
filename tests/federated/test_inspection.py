"""A reply of the wrong form or with impossible numbers is seen, and told in a few words; a good one passes."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from federated.exchange import UPDATE, Reply, Total
from federated.inspection import LARGEST_NORM, Expected, Ledger, fault, shapes, short

D = 7850
GOOD = Reply(3, 12.0, {UPDATE: torch.full((D,), 1e-3), "steps": torch.tensor(5.0)})
EXPECTED = Expected(shapes(GOOD.payload), max_norm=1.0, max_weight=100.0)


def with_update(tensor: Any) -> Reply:
    return replace(GOOD, payload=GOOD.payload | {UPDATE: tensor})


def spoiled(**values: float) -> Reply:
    """The good reply with numbers at places such as `at_7`."""
    update = GOOD.payload[UPDATE].clone()
    for place, value in values.items():
        update[int(place.removeprefix("at_"))] = value
    return with_update(update)


def test_a_good_reply_has_no_fault_whatever_the_order_of_its_names() -> None:
    assert fault(GOOD, EXPECTED) is None
    assert fault(replace(GOOD, payload=dict(reversed(GOOD.payload.items()))), EXPECTED) is None
    assert fault(replace(GOOD, weight=100), EXPECTED) is None


FAULTS = {
    "another shape": (with_update(torch.zeros(1)), "update has shape [1], expected [7850]"),
    "one too many": (with_update(torch.zeros(D + 1)), "update has shape [7851], expected [7850]"),
    "a matrix": (with_update(torch.zeros(1, D)), "update has shape [1, 7850], expected [7850]"),
    "a single number": (with_update(torch.tensor(1.0)), "update has shape [], expected [7850]"),
    "nothing": (with_update(torch.zeros(0)), "update has shape [0], expected [7850]"),
    "a number that is a vector": (
        replace(GOOD, payload=GOOD.payload | {"steps": torch.ones(1)}), "steps has shape [1], expected []"
    ),
    "float64": (with_update(torch.zeros(D, dtype=torch.float64)), "update is float64, expected float32"),
    "bfloat16": (with_update(torch.zeros(D, dtype=torch.bfloat16)), "update is bfloat16, expected float32"),
    "complex": (with_update(torch.zeros(D, dtype=torch.complex64)), "update is complex64, expected float32"),
    "bool": (with_update(torch.zeros(D, dtype=torch.bool)), "update is bool, expected float32"),
    "an array": (with_update(np.zeros(D, np.float32)), "update is of type ndarray, expected a tensor"),
    "None": (with_update(None), "update is of type NoneType, expected a tensor"),
    "sparse": (with_update(torch.zeros(D).to_sparse()), "update is not dense, expected float32"),
    "without memory": (with_update(torch.zeros(D, device="meta")), "update is not dense, expected float32"),
    "missing": (replace(GOOD, payload={"steps": torch.tensor(5.0)}), "update is missing"),
    "extra": (replace(GOOD, payload=GOOD.payload | {"up\ndate": torch.zeros(1)}), r"'up\ndate' is not expected"),
    "NaN": (spoiled(at_0=math.nan, at_9=math.nan, at_7849=math.inf), "update is not finite at 3 of 7850"),
    "minus infinity": (spoiled(at_5=-math.inf), "update is not finite at 1 of 7850"),
    "both infinities": (spoiled(at_5=-math.inf, at_6=math.inf), "update is not finite at 2 of 7850"),
    "a single NaN": (
        replace(GOOD, payload=GOOD.payload | {"steps": torch.tensor(math.nan)}), "steps is not finite at 1 of 1"
    ),
    "absurd": (spoiled(at_0=1e30), "update has norm 1e+30, above 1"),
    "as large as float32 goes": (with_update(torch.full((D,), 3e38)), "update has norm 2.65801e+40, above 1"),
    "above the bound": (spoiled(at_0=1.01), "update has norm 1.01388, above 1"),
    "weight -2": (replace(GOOD, weight=-2), "weight -2 is not above 0"),
    "weight 0": (replace(GOOD, weight=0.0), "weight 0.0 is not above 0"),
    "weight NaN": (replace(GOOD, weight=math.nan), "weight nan is not above 0"),
    "weight inf": (replace(GOOD, weight=math.inf), "weight inf is above 100"),
    "weight 101": (replace(GOOD, weight=101.0), "weight 101.0 is above 100"),
    "weight true": (replace(GOOD, weight=True), "weight True is not a number"),
    "weight as text": (replace(GOOD, weight="12"), "weight '12' is not a number"),  # type: ignore[arg-type]
    "weight None": (replace(GOOD, weight=None), "weight NoneType is not a number"),  # type: ignore[arg-type]
    "a weight of many digits": (replace(GOOD, weight=10**5000), "weight an integer of 16610 bits is above 100"),
    "a weight far below 0": (replace(GOOD, weight=-(10**5000)), "weight an integer of 16610 bits is not above 0"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_reply_is_told_in_a_few_words(name: str) -> None:
    reply, text = FAULTS[name]
    assert fault(reply, EXPECTED) == text


def test_without_bounds_what_floats_cannot_bear_is_still_refused() -> None:
    free = Expected(EXPECTED.vectors)
    assert fault(spoiled(at_0=1e18), free) is None
    assert fault(spoiled(at_0=1e20), free) == "update has norm 1e+20, above 1e+19"
    assert fault(replace(GOOD, weight=1e300), free) == "weight 1e+300 is above 9.0072e+15"
    total = Total()
    for sign in (1.0, 1.0, -1.0):
        total.add(replace(spoiled(at_0=sign * 0.99 * LARGEST_NORM), weight=2.0**53))
    assert total.mean().isfinite().all() and total.mean().float().square().isfinite().all()


def test_the_bound_is_for_the_update_alone() -> None:
    assert fault(replace(GOOD, payload=GOOD.payload | {"steps": torch.tensor(5e3)}), EXPECTED) is None


def test_other_types_can_be_expected() -> None:
    reply = Reply(
        1, 1.0, {"codes": torch.zeros(4, dtype=torch.int8), "sums": torch.full((2,), torch.inf, dtype=torch.float64)}
    )
    assert fault(reply, Expected(shapes(reply.payload))) == "sums is not finite at 2 of 2"
    reply.payload["sums"] = torch.full((2,), 1e200, dtype=torch.float64)  # finite, but the norm is not
    assert fault(reply, Expected(shapes(reply.payload))) == "sums has norm inf, above 1e+19"
    reply.payload["sums"] = torch.zeros(2, dtype=torch.float64)
    assert fault(reply, Expected(shapes(reply.payload))) is None


def test_values_from_outside_are_shown_short_and_printable() -> None:
    assert short("a\x1b[2J") == r"'a\x1b[2J'"
    assert len(short("x" * 10**6)) < 60 and len(short(list(range(10**6)))) < 60
    assert short((1, 2.5, "x")) == "[1, 2.5, 'x']"
    assert short(object()) == "object"


def test_every_reply_of_a_round_counts_once() -> None:
    ledger = Ledger.of_round(77, 5, [3, 1, 4])
    assert ledger.accept(3, 5, 77) is None
    assert ledger.accept(3, 5, 77) == "client 3 has already replied to round 5"
    assert ledger.accept(1, 4, 77) == "reply is of round 4, client 1 was asked in round 5"
    assert ledger.accept(3, 4, 77) == "reply is of round 4, client 3 was asked in round 5"
    assert ledger.accept(1, 6, 77) == "reply is of round 6, client 1 was asked in round 5"
    assert ledger.accept(2, 5, 77) == "client 2 was not asked"
    assert ledger.accept(1, 5, 78) == "reply is of run 78, this is run 77"
    assert ledger.accept(1, 5, 77) is None


def test_a_ledger_can_wait_for_replies_of_several_rounds() -> None:
    ledger = Ledger(77, [(1, 5), (1, 6), (2, 6), (2, 6)])
    assert ledger.accept(1, 6, 77) is None and ledger.accept(1, 5, 77) is None
    assert ledger.accept(1, 4, 77) == "reply is of round 4, client 1 was asked in round 5 or 6"
    assert ledger.accept(2, 6, 77) is None and ledger.accept(2, 6, 77) is None
    assert ledger.accept(2, 6, 77) == "client 2 has already replied to round 6"
