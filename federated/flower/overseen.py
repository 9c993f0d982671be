"""Flower's Grid as one of its own strategies sees it under us: replies are looked at before it does, and told of.

A reply that is not what our ClientApp sends would end the whole run in the strategy; here it is left out and named.
"""

import random
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from core.errors import WorkerError
from core.randomness import seed_of
from core.train import due
from federated.barren import Barren
from federated.exchange import Order
from federated.federation import Federation
from federated.flower.judged_record import Judgeable, judged_record, read_judged
from federated.flower.messages import (
    ARRAYS,
    CONFIG,
    METRICS,
    ROUND,
    Fault,
    Malformed,
    read_reply,
    read_weights,
    said_of_work,
)
from federated.flower.remote import as_judged, ask
from federated.inspection import Expected, shapes
from federated.intake import Told
from federated.judging import central_metrics, tell
from federated.server import Watch
from federated.site import Judged
from federated.telling import tell_round

Record = dict[str, Any]
Answers = Mapping[int, Message | Fault]  # by client


class Stopped(Exception):
    """The run was asked to stop."""


class Overseen(Grid):
    """`nodes`: the node of each client. After the run `weights` [D] are those of `round`, judged in `evaluation`."""

    def __init__(self, grid: Grid, federation: Federation, nodes: Mapping[int, int], watch: Watch) -> None:
        self.grid, self.federation, self.watch = grid, federation, watch
        self.nodes = dict(sorted(nodes.items()))
        self.clients = {node: client for client, node in nodes.items()}
        named = federation.frame.named(federation.first)
        self.expected = Expected(shapes(named), max_weight=federation.run.max_weight)
        self.exchanges = self.round = 0
        self.weights = federation.first
        self.barren = Barren()
        self.evaluation: Record = {}

    # --- what a strategy calls -------------------------------------------------------------------------------------

    def set_run(self, run: Run) -> None:
        self.grid.set_run(run)

    @property
    def run(self) -> Run:
        return self.grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return self.grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Those online, in the order of their clients. Strategies draw from them with `random`, from which threads of
        Flower's draw too: so it begins anew, and the same clients are drawn on every grid."""
        online = set(self.grid.get_node_ids())
        random.seed(seed_of(self.federation.run.recipe.seed, "nodes", self.exchanges))
        return [node for node in self.nodes.values() if node in online]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self.grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self.grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """The good replies, in the order of their clients. An evaluation that is not due asks nobody."""
        messages = list(messages)
        self.exchanges += 1
        kind = messages[0].metadata.message_type if messages else ""
        if kind == MessageType.TRAIN:
            if self.watch.should_stop():
                raise Stopped
            return self._trained(_round_of(messages), messages, timeout)
        if kind == MessageType.EVALUATE:
            return self._judged(_round_of(messages), messages, timeout) if self._is_due(_round_of(messages)) else []
        return [reply for reply in self._asked(messages, timeout).values() if isinstance(reply, Message)]

    def take(self, round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """The model after a round, kept and judged on what the server holds out: the strategy's `evaluate_fn`."""
        try:
            weights = read_weights(_in_float32(arrays), self.federation.frame)
        except Malformed as error:
            raise WorkerError(f"strategy: after round {round} its arrays are not those of the model: {error}") from None
        if not bool(torch.isfinite(weights).all()):
            raise WorkerError(
                f"federation: the model is not finite after round {round}; lower optimizer.lr, or the strategy's own "
                "learning rate in strategy.arguments"
            )
        self.round, self.weights = round, weights
        if round == 0 or not self._is_due(round):
            return None
        metrics, _ = central_metrics(self.federation, Order(round, weights), "validation")
        if not metrics:
            return None
        self.evaluation["validation"] = metrics
        self.watch.report({**self._place(round), "split": "validation", **metrics})
        return MetricRecord(dict(metrics))

    # --- what becomes of messages ----------------------------------------------------------------------------------

    def _asked(self, messages: Sequence[Message], timeout: float | None) -> Answers:
        """Each client's answer."""
        contents: dict[int, RecordDict] = {}  # many messages carry the same one, and are to go on doing so
        for message in messages:
            if id(message.content) not in contents:
                contents[id(message.content)] = _readable(message.content)
            message.content = contents[id(message.content)]
        found = ask(self.grid, messages, self.federation.run.timeout_s if timeout is None else timeout)
        by_client = {self.clients[m.metadata.dst_node_id]: answer for m, answer in zip(messages, found, strict=True)}
        return dict(sorted(by_client.items()))

    def _trained(self, round: int, messages: Sequence[Message], timeout: float | None) -> list[Message]:
        told, good, began = list[Told](), list[Message](), time.perf_counter()
        for client, message in self._asked(messages, timeout).items():
            answer = message if isinstance(message, Fault) else read_reply(message, self.expected, client)
            if isinstance(answer, Fault):
                told.append(Told(client, fault=answer.text))
                continue
            assert isinstance(message, Message)
            told.append(Told(client, *said_of_work(answer.metrics), answer.reply.size_bytes))
            arrays = message.content[ARRAYS]  # in the model's order: some strategies go by that, not by names
            message.content[ARRAYS] = ArrayRecord({name: arrays[name] for name in self.expected.vectors})
            good.append(message)
        self._tell(round, told, time.perf_counter() - began)
        self.barren.look(round, told, [], len(good))
        if round == self.federation.run.rounds:  # before anything is judged
            self.barren.require_any(round)
        return good

    def _judged(self, round: int, messages: Sequence[Message], timeout: float | None) -> list[Message]:
        """A client that holds nothing out has nothing to say."""
        judged, good = Judged(), list[Message]()
        wanted = Judgeable.of(self.federation)
        for client, message in self._asked(messages, timeout).items():
            found = message if isinstance(message, Fault) else read_judged(message, client, wanted)
            judged.merge(as_judged(found, client))
            if isinstance(message, Message) and isinstance(found, Judged) and found.verdicts:
                message.content[METRICS] = judged_record(found)[METRICS]  # a strategy averages what was read, no more
                good.append(message)
        self.evaluation |= tell(self.federation, judged, round, self.watch.report)
        _leave_common(good)
        return good

    def _tell(self, number: int, told: Sequence[Told], seconds: float) -> None:
        faults = sum(one.fault is not None for one in told)
        numbers: Record = {"clients": len(told) - faults, "failed": faults}
        numbers |= {"bytes_up": sum(one.bytes_up for one in told), "bytes_down": self.federation.bytes_down * len(told)}
        tell_round(self._place(number), told, {**numbers, "seconds": seconds}, [], self.watch.report)

    def _place(self, round: int) -> Record:
        return {"round": round, "rounds": self.federation.run.rounds}

    def _is_due(self, round: int) -> bool:
        return due(round, self.federation.run.evaluate.every, self.federation.run.rounds)


def _round_of(messages: Sequence[Message]) -> int:
    """What Flower's strategies write into their messages; 0 if it is not there."""
    config = messages[0].content.get(CONFIG)
    number = config.get(ROUND) if isinstance(config, Mapping) else None
    return number if isinstance(number, int) else 0


def _leave_common(replies: Sequence[Message]) -> None:
    """Leaves the metrics that all of them have, as strategies demand: some have no AUC, for want of a second class."""
    common = set.intersection(*(set(reply.content[METRICS]) for reply in replies)) if replies else set()
    for reply in replies:
        own = reply.content.metric_records[METRICS]
        reply.content[METRICS] = MetricRecord({name: value for name, value in own.items() if name in common})


def _readable(content: RecordDict) -> RecordDict:
    """The same content with arrays that our ClientApp takes."""
    arrays = content.get(ARRAYS)
    if not isinstance(arrays, ArrayRecord):
        return content
    return RecordDict({**content, ARRAYS: _in_float32(arrays)})


def _in_float32(arrays: ArrayRecord) -> ArrayRecord:
    """Flower's adaptive strategies come to float64, in which no client trains."""
    if all(array.dtype == "float32" for array in arrays.values()):
        return arrays
    with np.errstate(over="ignore"):  # what is infinite is refused in `take`
        return ArrayRecord({name: Array(array.numpy().astype(np.float32)) for name, array in arrays.items()})
