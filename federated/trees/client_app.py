"""The client's side: it grows trees on its own rows, and measures the shared model on what it holds out.

app = client_app(lambda number: clients.data(number, seed))
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from core.data import Data
from core.errors import DataError
from core.metrics import Metrics, State
from core.objectives.supervised import Classification, Regression
from core.task import Batch
from federated.policy import Policy
from federated.trees.booster import Rows, grow, library, outputs, share_of
from federated.trees.config import Plan

ARRAYS, CONFIG, METRICS = "arrays", "config", "metrics"  # the names that Flower's strategies use
WITHHELD = "withheld"  # in place of an evaluation: too few rows for the client's policy
HELD_OUT = "validation"  # the split that a client measures on
# What reading a message from outside may raise; an array's header may claim more than there is memory
MALFORMED = (LookupError, TypeError, ValueError, AttributeError, OSError, EOFError, MemoryError)


def client_app(load: Callable[[int], Data], policy: Policy | None = None) -> ClientApp:
    """A Flower app whose clients have the data that `load` gives for their number, the node's partition id.

    The first question of a server is whether a client is ready; its answer says how many rows it has, and what its
    targets sum up to. policy: what they let out of their rows; None hides nothing.
    """
    app = ClientApp()

    @app.query()
    def ready(message: Message, context: Context) -> Message:
        library()
        rows = _rows(load, message, context, "train")
        if not len(rows.inputs):
            raise DataError("trees: this client has no row to train on; leave it out")
        if policy:
            policy.require(len(rows.inputs), _plan(message).clients)
        weight = rows.weight.double()
        sums = {"weight": weight.sum().item(), "sum": (weight @ rows.targets.double()).item()}
        return Message(_content(context, rows, sums), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        plan, rows = _plan(message), _rows(load, message, context, "train")
        rows = rows.under(policy) if policy else rows
        record: Any = message.content[CONFIG]
        model = grow(model_of(message.content), rows, plan, record["server-round"], _number(context))
        content = _content(context, rows)
        content[ARRAYS] = record_of(share_of(model, plan) if plan.config.mode == "bagging" else model)
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        plan, rows = _plan(message), _rows(load, message, context, HELD_OUT)
        if policy and 0 < len(rows.inputs) < policy.least_count:
            return Message(_content(context, rows, {WITHHELD: 1.0}), reply_to=message)
        state = measured(model_of(message.content), rows, plan)
        if policy:
            key = plan.config.seed, "judge", _number(context)
            state = policy.judged(Metrics.of(plan.target, plan.outputs), state, *key)
        return Message(_content(context, rows, {k: v.flatten().tolist() for k, v in state.items()}), reply_to=message)

    return app


def measured(model: bytes, rows: Rows, plan: Plan) -> State:
    """The metric state of a model on some rows."""
    metrics = Metrics.of(plan.target, plan.outputs)
    state = metrics.zero()
    if len(rows.inputs):
        predicted = outputs(model, rows.inputs)
        targets = rows.targets if plan.target == "class" else rows.targets[:, None]
        batch: Batch = {"inputs": rows.inputs, "targets": targets, "weight": rows.weight}
        objective = Classification() if plan.target == "class" else Regression()
        metrics.add(state, predicted, batch, objective.losses(predicted, batch), objective.weights(batch))
    return state


def record_of(model: bytes) -> ArrayRecord:
    """A model as Flower's strategies for trees take it: one array of bytes."""
    return ArrayRecord([np.frombuffer(model, np.uint8)])


def model_of(content: RecordDict) -> bytes:
    """The inverse, of a message's content. One of `MALFORMED` if it holds none."""
    record: Any = content[ARRAYS]
    array: NDArray[np.uint8] = record["0"].numpy()
    if array.dtype != np.uint8 or array.ndim != 1:
        raise TypeError("a model is one array of bytes")
    return array.tobytes()


def _plan(message: Message) -> Plan:
    return Plan.read(dict(message.content[CONFIG]))


def _rows(load: Callable[[int], Data], message: Message, context: Context, split: str) -> Rows:
    return Rows.of(load(_number(context)), split, _plan(message))


def _number(context: Context) -> int:
    return int(context.node_config["partition-id"])


def _content(context: Context, rows: Rows, numbers: Mapping[str, float | list[float]] | None = None) -> RecordDict:
    own = {"client": _number(context), "num-examples": len(rows.inputs)}
    return RecordDict({METRICS: MetricRecord({**own, **(numbers or {})})})
