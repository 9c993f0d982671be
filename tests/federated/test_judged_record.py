"""A client cannot decide an evaluation: what no examples give does not count, and its client is named."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from flwr.app import Message, MetricRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.metrics import Metrics
from core.task import Batch
from federated.federation import Federation
from federated.flower.messages import ARRAYS, METRICS, WEIGHT, weights_record
from federated.judging import judge
from federated.keeping import Keeping
from federated.server import Order
from tests.federated.test_barren import federation
from tests.federated.test_remote import _identity, engine  # noqa: F401 - a fixture of the fake grid

HOSTILE = 2  # the client that sends what it likes
Spoil = Callable[[Message], None]


def put(name: str, change: Callable[[Tensor], Any]) -> Spoil:
    """Changes one tensor of the shared model's state in place."""

    def spoil(reply: Message) -> None:
        states = reply.content[ARRAYS].to_torch_state_dict()
        change(states[f"shared.{name}"])
        reply.content[ARRAYS] = weights_record(states)

    return spoil


def scaled(factor: float) -> Spoil:
    """A whole state that agrees with itself, of so many times the rows."""

    def spoil(reply: Message) -> None:
        states = reply.content[ARRAYS].to_torch_state_dict()
        reply.content[ARRAYS] = weights_record({name: tensor * factor for name, tensor in states.items()})

    return spoil


def says(examples: Any) -> Spoil:
    return lambda reply: reply.content[METRICS].__setitem__(WEIGHT, examples)


def as_personal(reply: Message) -> None:
    states = reply.content[ARRAYS].to_torch_state_dict()
    reply.content[ARRAYS] = weights_record(
        states | {f"personal{n.removeprefix('shared')}": t for n, t in states.items()}
    )
    reply.content[METRICS][f"personal.{WEIGHT}"] = reply.content[METRICS][WEIGHT]


def without_numbers(reply: Message) -> None:
    reply.content[METRICS] = MetricRecord({})


UNEVEN = "confusion does not sum to the weight"


def one_below_0(confusion: Tensor) -> None:
    confusion.view(-1)[:2].add_(torch.tensor([-50.0, 50.0]))


SPOILED: dict[str, tuple[Spoil, str]] = {
    "a cell below 0": (put("confusion", one_below_0), "confusion is below 0"),
    "a confusion of more rows": (put("confusion", lambda t: t.diagonal().add_(100)), UNEVEN),
    "scores of more rows": (put("scores", lambda t: t[0, 0, 0].add_(100)), "scores do not sum to the weight"),
    "scores of other classes": (put("scores", lambda t: t.copy_(t.flip(0))), "scores are not of the classes"),
    "a weight of more rows": (put("weight", lambda t: t.add_(100)), UNEVEN),
    "a state of more rows": (scaled(1000.0), "weight 5000 is above 5"),
    "a negative loss": (put("loss", lambda t: t.sub_(1e6)), "loss is below 0"),
    "a loss that is no number": (put("loss", lambda t: t.fill_(math.nan)), "loss is not finite"),
    "a loss past all sums": (put("loss", lambda t: t.fill_(1e300)), r"loss is above 1e\+150"),
    "2^63 examples": (says(2**63), r"says that it judged 9223372036854775808 examples, and holds out 5"),
    "examples below 0": (says(-1), "says that it judged -1 examples"),
    "examples as text of numbers": (says([1, 2]), r"says that it judged \[1, 2\] examples"),
    "a model that nobody asked for": (as_personal, "'personal.loss' is not expected"),
    "states without their numbers": (without_numbers, "is not expected"),
}  # fmt: skip


def judged(found: Federation, spoil: Spoil) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    def tamper(message: Message, reply: Message) -> list[Message]:
        if message.metadata.message_type == "evaluate" and message.metadata.dst_node_id == HOSTILE + 2:
            spoil(reply)
        return [reply]

    records: list[dict[str, Any]] = []
    return judge(found, engine(found, tamper), Order(1, found.first), Keeping(), records.append), records


@pytest.mark.parametrize("name", SPOILED)
def test_an_evaluation_that_no_examples_give_does_not_count_and_its_client_is_named(name: str) -> None:
    spoil, said = SPOILED[name]
    result, records = judged(federation(), spoil)
    (failed,) = [record for record in records if record.get("event") == "client_failed"]
    assert failed["client"] == HOSTILE
    assert re.search(said, failed["reason"]), failed["reason"]
    assert result["clients"]["spread"]["loss"]["clients"] == 5
    assert 0 <= result["clients"]["metrics"]["accuracy"] <= 1


def test_max_weight_bounds_what_a_client_counts_in_an_evaluation() -> None:
    _, records = judged(federation(max_weight=4.0), lambda reply: None)
    failed = [record for record in records if record.get("event") == "client_failed"]
    assert failed and all("is above 4" in record["reason"] for record in failed)


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": {"kind": "ditto"}},
        {"data": {"kind": "table", "path": "bundled:diabetes"}, "objective": {"kind": "regression"}},
        {
            "data": {"kind": "text", "path": "bundled:english", "context": 16},
            "model": {"kind": "recurrent", "hidden": 4},
        },
    ],
    ids=["a model of its own", "real values", "text"],
)
def test_what_honest_clients_judge_counts(changes: dict[str, Any]) -> None:
    result, records = judged(federation(**changes), lambda reply: None)
    assert not [record for record in records if record.get("event") == "client_failed"]
    assert result["clients"]["spread"]["loss"]["clients"] == 6


# --- states from outside -------------------------------------------------------------------------------------------

KINDS = {"class": Metrics.of("class", 3), "two classes": Metrics.of("class", 2), "real": Metrics.of("real", 2)}
KINDS |= {"token": Metrics.of("token", 5, bytes_per_token=2.0), "smoothed": Metrics.of("token", 5, smoothed=True)}


@settings(max_examples=40)
@given(st.sampled_from(sorted(KINDS)), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_a_state_of_data_has_no_fault(kind: str, rows: int, seed: int) -> None:
    metrics, generator = KINDS[kind], torch.Generator().manual_seed(seed)
    weights = torch.rand(rows, generator=generator) * 3
    state = metrics.zero()
    if kind in ("token", "smoothed"):
        outputs, targets = (
            torch.randn(rows, 4, 5, generator=generator),
            torch.randint(5, (rows, 4), generator=generator),
        )
        targets[0, :2] = -100
        counts = (targets != -100).sum(1).float()
    elif kind == "real":
        outputs, targets = (1e3 * torch.randn(rows, 2, generator=generator) for _ in range(2))
        counts = torch.ones(rows)
    else:
        classes = len(metrics.zero()["confusion"])
        outputs, targets = (
            torch.randn(rows, classes, generator=generator),
            torch.randint(classes, (rows,), generator=generator),
        )
        counts = torch.ones(rows)
    batch: Batch = {"inputs": outputs, "targets": targets, "weight": weights}
    metrics.add(state, outputs, batch, torch.rand(rows, generator=generator), counts)
    assert metrics.fault(state) is None


ANY = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, 1.0, -1.0, 1e-320, 1e300])


@settings(max_examples=150)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_whatever_a_state_holds_it_has_a_fault_or_gives_numbers_also_beside_another(
    kind: str, data: st.DataObject
) -> None:
    metrics = KINDS[kind]
    states = []
    for _ in range(2):
        state = metrics.zero()
        for tensor in state.values():
            flat = tensor.view(-1)
            for place in range(min(3, len(flat))):
                flat[place] = data.draw(ANY)
        states.append(state)
    good = [state for state in states if metrics.fault(state) is None]
    for state in [*good, *([Metrics.merge(*good)] if len(good) == 2 else [])]:
        assert all(math.isfinite(value) for value in metrics.compute(state).values())
