"""The engine over Flower's Grid: the same bits as a pool's, and what becomes of replies that do not come or are not
good."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from core.config import dump_run, to_yaml
from core.errors import WorkerError
from federated.client_app import app
from federated.federation import Federation
from federated.flower.remote import GridEngine
from federated.server import Watch
from tests.federated.reference import served
from tests.federated.test_engines import federation, local

RUN = 17
Tamper = Callable[[Message, Message], list[Message]]


class FakeGrid(Grid):
    """Nodes in this process, node n is client n - 2. `tamper(message, reply)` says what comes back in place of a
    reply."""

    def __init__(self, found: Federation, tamper: Tamper = lambda message, reply: [reply]) -> None:
        self.config = {"config": to_yaml(dump_run(found.run))}
        self.count, self.tamper = len(found.clients), tamper
        self.states = {node: RecordDict() for node in self.get_node_ids()}
        self.waiting: list[Message] = []

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any: ...

    def create_message(self, *arguments: Any, **named: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return [2 + client for client in reversed(range(self.count))]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for number, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = f"{message.metadata.message_type}-{number}-{id(message)}"
            node = message.metadata.dst_node_id
            told = {"partition-id": node - 2, "num-partitions": self.count}
            reply = app(message, Context(RUN, node, told, self.states[node], dict(self.config)))
            kind = message.metadata.message_type
            self.waiting += self.tamper(message, reply) if kind != "query" else [reply]
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found, self.waiting = self.waiting[::-1], []
        return found

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def _identity() -> Iterator[None]:
    held = ("_run_id", "_node_id", "_task_id")
    before = {name: getattr(TaskIdentity, name) for name in held}
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, 1, 1
    yield
    for name, value in before.items():
        setattr(TaskIdentity, name, value)


def engine(found: Federation, tamper: Tamper = lambda message, reply: [reply]) -> GridEngine:
    return GridEngine(found, FakeGrid(found, tamper), RUN)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"strategy": {"kind": "scaffold"}},
        {"strategy": {"kind": "fednova"}},
        {"strategy": {"kind": "ditto"}, "evaluate": {"every": 1, "held_out": 0.2}},
        {"strategy": {"kind": "krum"}, "transforms": [{"kind": "int8"}]},
        {"transforms": [{"kind": "clipping", "norm": 0.5, "above": "scale"}, {"kind": "top_k", "share": 0.1}]},
    ],
)
def test_flowers_grid_gives_the_same_bits_as_a_pool(changes: dict[str, Any]) -> None:
    found = federation(backend="loop", **changes)
    there: list[dict[str, Any]] = []
    here: list[dict[str, Any]] = []
    a, b = served(found, engine(found), Watch(there.append)), served(found, local(found), Watch(here.append))
    assert torch.equal(a, b)

    def told(records: list[dict[str, Any]]) -> list[Any]:
        skipped = ("seconds", "time")
        return [{k: v for k, v in r.items() if k not in skipped} for r in records]

    assert told(there) == told(here)


def first_of(found: Federation) -> int:
    return min(job.client for job in next(found.schedule.plans()).jobs)


def tampered(
    found: Federation, change: Callable[[Message, Message], list[Message]]
) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """One round in which one client's reply is another."""
    victim = 2 + first_of(found)
    records: list[dict[str, Any]] = []

    def tamper(message: Message, reply: Message) -> list[Message]:
        return change(message, reply) if message.metadata.dst_node_id == victim else [reply]

    weights = served(found, engine(found, tamper), Watch(records.append))
    return weights, [r for r in records if r.get("event") == "quarantined"]


def without(found: Federation) -> torch.Tensor:
    """The weights of a round in which the client is left out."""
    victim = first_of(found)
    clients = replace(found)
    clients.__dict__["schedule"] = Without(found, victim)
    return served(clients, local(clients))


class Without:
    def __init__(self, found: Federation, client: int) -> None:
        self.found, self.client = found, client

    def plans(self, start: int = 1) -> Iterator[Any]:
        for plan in self.found.schedule.plans(start):
            yield replace(plan, jobs=tuple(job for job in plan.jobs if job.client != self.client))


def renamed(message: Message, reply: Message) -> list[Message]:
    metrics = dict(reply.content["metrics"])
    metrics["client"] = 11
    reply.content["metrics"] = MetricRecord(metrics)
    return [reply]


def of_another_run(message: Message, reply: Message) -> list[Message]:
    metrics = dict(reply.content["metrics"])
    metrics["run"] = RUN + 1
    reply.content["metrics"] = MetricRecord(metrics)
    return [reply]


def of_another_round(message: Message, reply: Message) -> list[Message]:
    metrics = dict(reply.content["metrics"])
    metrics["round"] = 9
    reply.content["metrics"] = MetricRecord(metrics)
    return [reply]


def died(message: Message, reply: Message) -> list[Message]:
    """What the SuperLink answers in the place of a node from which it has heard nothing for long."""
    reply = Message(Error(ErrorCode.NODE_UNAVAILABLE, "Error: Node Unavailable"), reply_to=message)
    reply.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
    return [reply]


def of_a_stranger(message: Message, reply: Message) -> list[Message]:
    """Another node that answers in the place of this one."""
    reply.metadata.__dict__["_src_node_id"] = 99
    return [reply]


def without_arrays(message: Message, reply: Message) -> list[Message]:
    reply.content = RecordDict({"metrics": reply.content["metrics"], "config": ConfigRecord({"a": 1})})
    return [reply]


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda message, reply: [], "no answer within timeout_s, 0.2 s"),
        (died, "its SuperNode has died or cannot be reached: no sign of life for 60 s"),
        (of_a_stranger, "no answer within timeout_s, 0.2 s"),
        (lambda message, reply: [Message(Error(2, "ValueError: no data"), reply_to=message)], "no data"),
        (renamed, "reply says it is of client 11"),
        (of_another_run, "reply is of run 18, this is run 17"),
        (of_another_round, "reply is of round 9"),
        (without_arrays, "record arrays is missing"),
    ],
)
def test_a_reply_that_is_not_good_is_left_out_and_its_client_named(change: Any, said: str) -> None:
    found = federation(backend="loop", rounds=1, timeout_s=0.2)
    weights, bad = tampered(found, change)
    (event,) = bad
    assert event["client"] == first_of(found) and said in event["reason"]
    assert torch.equal(weights, without(found))


def test_the_client_of_a_node_that_died_does_not_count_in_an_evaluation_and_is_named_with_the_reason() -> None:
    found = federation(backend="loop", rounds=1, evaluate={"every": 1, "held_out": 0.2})
    records: list[dict[str, Any]] = []

    def tamper(message: Message, reply: Message) -> list[Message]:
        is_it = message.metadata.message_type == "evaluate" and message.metadata.dst_node_id == 2
        return died(message, reply) if is_it else [reply]

    served(found, engine(found, tamper), Watch(records.append))
    named = [r for r in records if "event" in r and "its SuperNode has died" in str(r)]
    assert [r["client"] for r in named] == [0]


def test_a_message_that_the_superlink_does_not_take_is_not_waited_for() -> None:
    """Flower gives no number to the message of a node that is gone for good, and to none where they are too large."""
    found = federation(backend="loop", rounds=1)
    victim = first_of(found)

    def push(self: FakeGrid, messages: Iterable[Message]) -> list[Any]:
        ids = FakeGrid.push_messages(self, messages)
        kinds = [(m.metadata.message_type, m.metadata.dst_node_id) for m in messages]
        return [None if kind == ("train", victim + 2) else name for kind, name in zip(kinds, ids, strict=True)]

    records: list[dict[str, Any]] = []
    grid = type("Taking", (FakeGrid,), {"push_messages": push})(found)
    weights = served(found, GridEngine(found, grid, RUN), Watch(records.append))
    (event,) = [r for r in records if r.get("event") == "quarantined"]
    assert event["client"] == victim and "the SuperLink did not take its message" in event["reason"]
    assert torch.equal(weights, without(found))
    grid.push_messages = lambda messages: []
    with pytest.raises(WorkerError, match="one said: the SuperLink did not take its message"):
        GridEngine(found, grid, RUN)


def test_a_reply_that_comes_twice_counts_once() -> None:
    found = federation(backend="loop", rounds=1)
    weights, bad = tampered(found, lambda message, reply: [reply, reply])
    assert not bad and torch.equal(weights, served(found, local(found)))


def test_a_client_without_a_node_is_named_before_the_first_round() -> None:
    found = federation(backend="loop")
    grid = FakeGrid(found)
    grid.get_node_ids = lambda: [2, 3, 4]  # type: ignore[method-assign]
    with pytest.raises(WorkerError, match="9 clients have no node, the first is client 3"):
        GridEngine(found, grid, RUN)


def test_two_nodes_that_say_they_are_one_client_are_refused() -> None:
    found = federation(backend="loop")
    grid = FakeGrid(found)
    grid.get_node_ids = lambda: [2, 3, 3]  # type: ignore[method-assign]
    with pytest.raises(WorkerError, match="two nodes say they are client 1"):
        GridEngine(found, grid, RUN)
