"""The server's side: Flower's bagging or cyclic strategy, over replies that were looked at and put in order.

Replies come in any order and Flower joins trees as they come, so they are sorted by client first. What a client sends
is inspected before it counts: a client that fails, or sends what is no model, is left out of the round and named.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, FedXgbBagging, FedXgbCyclic

from core.data import Spec
from core.errors import ResourceError, WorkerError
from core.metrics import Metrics, State
from federated.inspection import LARGEST_WEIGHT, count_fault
from federated.trees.booster import empty, settled
from federated.trees.client_app import ARRAYS, CONFIG, MALFORMED, METRICS, WITHHELD, model_of, record_of
from federated.trees.config import Plan, TreesConfig
from federated.trees.inspection import fault

WEIGHT = "num-examples"  # Flower's name
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Fault:
    """Why a reply did not count; `node` is Flower's number of the client's node."""

    round: int
    node: int
    text: str


@dataclass(frozen=True)
class Forest:
    """What a run gives: the model as JSON, the metrics of the clients' held-out rows together after each round, faults.

    A round's metrics are empty where no client holds out anything.
    """

    model: bytes
    rounds: tuple[dict[str, float], ...]
    faults: tuple[Fault, ...]


def server_app(
    config: TreesConfig,
    spec: Spec,
    clients: int,
    done: Callable[[Forest], None],
    unit: float = 1.0,
    report: Report = lambda record: None,
) -> ServerApp:
    """A Flower app that grows a forest with `clients` nodes and gives it to `done`. `unit`: see `Data.unit`.

    report: called with each round's metrics, {"round", "rounds", "split": "clients", ...}, and for each fault with an
    event `client_failed` or, where a reply was looked at and put aside, `quarantined`.

    Raises ResourceError if fewer nodes are online, WorkerError if a client is not ready, or none ever trained.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        plan, nodes = _ready(grid, Plan.of(config, spec, clients))
        blank = empty(plan)
        desk = Desk(plan, nodes, blank, unit, report)
        strategy = Bagging(desk) if config.mode == "bagging" else Cyclic(desk)
        terms = plan.flat()
        result = strategy.start(
            grid,
            record_of(blank),
            config.rounds,
            train_config=ConfigRecord(terms),
            evaluate_config=ConfigRecord(terms),
        )
        if not len(result.arrays):
            first = desk.faults[0]
            raise WorkerError(f"trees: no client ever trained; the first to fail was node {first.node}: {first.text}")
        done(Forest(result.arrays["0"].numpy().tobytes(), tuple(desk.rounds), tuple(desk.faults)))

    return app


def _ready(grid: Grid, plan: Plan) -> tuple[Plan, list[int]]:
    """The plan with the mean of all real targets as its start, and the nodes in the order of their clients' numbers."""
    nodes = sorted(grid.get_node_ids())
    if len(nodes) < plan.clients:
        raise ResourceError(f"trees: {len(nodes)} of {plan.clients} clients are online; start the others first")
    content = RecordDict({CONFIG: ConfigRecord(plan.flat())})
    replies = grid.send_and_receive([Message(content, node, MessageType.QUERY) for node in nodes])
    answers: dict[int, tuple[int, float, float]] = {}
    for reply in replies:
        if reply.has_error():
            raise WorkerError(f"trees: node {reply.metadata.src_node_id} is not ready: {reply.error.reason}")
        answers[reply.metadata.src_node_id] = _answer(reply)
    if silent := set(nodes) - set(answers):
        raise WorkerError(f"trees: node {min(silent)} did not answer; start it again, or leave it out")
    nodes.sort(key=lambda node: answers[node])
    plan = replace(plan, clients=len(nodes))
    if plan.target == "real":
        weight = sum(answers[node][1] for node in nodes)
        plan = replace(plan, start=sum(answers[node][2] for node in nodes) / weight)
    return plan, nodes


def _answer(reply: Message) -> tuple[int, float, float]:
    """What a node says of itself: its client's number, the weight of its rows, the sum of their targets."""
    try:
        numbers: Any = reply.content[METRICS]
        client, weight, total = int(numbers["client"]), float(numbers["weight"]), float(numbers["sum"])
        if client >= 0 and 0 < weight <= LARGEST_WEIGHT and math.isfinite(total):
            return client, weight, total
    except MALFORMED:
        pass
    raise WorkerError(f"trees: node {reply.metadata.src_node_id} does not say how many rows it has; leave it out")


class Desk:
    """Where replies are looked at. Keeps and reports what was wrong with them, and the metrics by round."""

    def __init__(self, plan: Plan, nodes: list[int], blank: bytes, unit: float, report: Report) -> None:
        self.plan, self.nodes, self.blank, self.report = plan, nodes, blank, report
        self.metrics = Metrics.of(plan.target, plan.outputs, unit=unit)
        self.faults: list[Fault] = []
        self.rounds: list[dict[str, float]] = []

    def models(self, turn: int, replies: Iterable[Message], trees: int, parallel: int) -> list[Message]:
        """The replies with a model of so many trees, in the order of the clients' numbers, and with nothing else."""
        good = []
        for reply in self._in_order(turn, replies):
            try:
                model, numbers = model_of(reply.content), dict[str, Any](reply.content[METRICS])
                content = RecordDict({ARRAYS: record_of(model), METRICS: MetricRecord({WEIGHT: numbers[WEIGHT]})})
                text = count_fault(numbers[WEIGHT]) or fault(model, self.blank, trees, parallel)
            except MALFORMED:
                text = "holds no model"
            if text:
                self._blame("quarantined", Fault(turn, reply.metadata.src_node_id, text))
                continue
            reply.content = content
            good.append(reply)
        return good

    def measure(self, turn: int, replies: Iterable[Message]) -> MetricRecord:
        """The metrics of all held-out rows together, from the states that clients sent."""
        zero = self.metrics.zero()
        total = zero
        for reply in self._in_order(turn, replies):
            if WITHHELD in reply.content.get(METRICS, {}):
                self._withheld(turn, reply.metadata.src_node_id)
                continue
            try:
                state = _state_of(reply.content, zero)
                text = self.metrics.fault(state) or _weight_fault(state)
            except MALFORMED:
                text = "holds no metrics"
            if text:
                self._blame("quarantined", Fault(turn, reply.metadata.src_node_id, text))
            else:
                total = Metrics.merge(total, state)
        metrics = self.metrics.compute(total)
        self.rounds.append(metrics)
        if metrics:
            self.report({"round": turn, "rounds": self.plan.config.rounds, "split": "clients", **metrics})
        return MetricRecord(dict(metrics))

    def _withheld(self, turn: int, node: int) -> None:
        said = f"round {turn}: a client that withholds its evaluation, for it holds out too few rows"
        self.report({"event": "withheld", "message": said, "clients": [self.nodes.index(node)]})

    def _blame(self, event: str, fault: Fault) -> None:
        self.faults.append(fault)
        client = self.nodes.index(fault.node)
        self.report({"event": event, "round": fault.round, "client": client, "reason": fault.text})

    def _in_order(self, turn: int, replies: Iterable[Message]) -> list[Message]:
        good = []
        place = {node: i for i, node in enumerate(self.nodes)}
        for reply in sorted(replies, key=lambda reply: place.get(reply.metadata.src_node_id, len(place))):
            node = reply.metadata.src_node_id
            if node not in place:
                continue
            if reply.has_error():
                self._blame("client_failed", Fault(turn, node, reply.error.reason or "failed"))
            else:
                good.append(reply)
        return good


class Bagging(FedXgbBagging):
    """Flower's, whose joined models are then numbered as the library does it."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(
            min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1, train_metrics_aggr_fn=_examples
        )
        self.desk = desk

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """All trees that clients added, in the order of their numbers."""
        added = self.desk.plan.added
        arrays, metrics = super().aggregate_train(server_round, self.desk.models(server_round, replies, added, added))
        if arrays is None:
            return None, None
        return record_of(settled(arrays["0"].numpy().tobytes(), self.desk.plan)), metrics

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord:
        """Metrics of the union, not means of metrics."""
        return self.desk.measure(server_round, replies)


class Cyclic(FedXgbCyclic):
    """Flower's, whose turns follow the clients' numbers, and which measures on all clients."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(min_available_nodes=1, train_metrics_aggr_fn=_examples)
        self.min_train_nodes = self.min_evaluate_nodes = 1  # Flower's constructor says 2
        self.registered_nodes = {node: i for i, node in enumerate(desk.nodes, 1)}
        self.desk = desk
        self.trees = 0

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The model of the client whose turn it was."""
        trees = self.trees + self.desk.plan.added
        good = self.desk.models(server_round, replies, trees, 1)
        self.trees = trees if good else self.trees
        return super().aggregate_train(server_round, good)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """All clients."""
        return FedAvg.configure_evaluate(self, server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord:
        """Metrics of the union, not means of metrics."""
        return self.desk.measure(server_round, replies)


def _examples(contents: list[RecordDict], weighted_by: str) -> MetricRecord:
    """How many rows were trained on: all that there is to say of a round's training."""
    records: list[Any] = [content[METRICS] for content in contents]
    return MetricRecord({weighted_by: sum(record[weighted_by] for record in records)})


def _state_of(content: RecordDict, like: State) -> State:
    """A metric state. One of `MALFORMED` if it is none."""
    record: Any = content[METRICS]
    return {name: torch.tensor(record[name], dtype=torch.float64).view(zero.shape) for name, zero in like.items()}


def _weight_fault(state: State) -> str | None:
    weight = float(state["weight"])
    return f"weight {weight:g} is above {LARGEST_WEIGHT:g}" if weight > LARGEST_WEIGHT else None
