"""The ClientApp of a federated run: `Site` behind Flower's messages. Its node's `partition-id` is the client's number.

What a client keeps from round to round lies in its Context's state and never leaves the node.
"""

from functools import lru_cache

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from core.errors import WorkerError
from federated.exchange import Vectors
from federated.federation import Federation
from federated.flower.app_config import run_of
from federated.flower.judged_record import judged_record
from federated.flower.messages import METRICS, read_order, reply_record, weights_record
from federated.intake import Work
from federated.site import Site

KEPT = "kept"  # the record of what a client keeps
app = ClientApp()


@app.query()
def who(message: Message, context: Context) -> Message:
    """Which client this is."""
    return Message(RecordDict({METRICS: MetricRecord({"client": _client(context)})}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round's work: the update that the strategy wants, or all weights, which Flower's own strategies average."""
    site = _site(context)
    client, told = _client(context), read_order(message.content, site.frame)
    (sent,) = site.answers(told.order, [Work(client, told.order.round, _kept(context))])
    if sent.reply is None:
        raise WorkerError(f"client {client}: {sent.told.fault}")
    if sent.kept:
        context.state[KEPT] = weights_record(sent.kept)
    reply = sent.reply
    if told.wants == "weights":
        reply = site.whole(told.order, reply)
    numbers = {"loss": sent.told.loss, "examples": float(sent.told.examples), "norm": sent.told.norm}
    return Message(reply_record(reply, told.order.round, told.run_id, numbers), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Judges the order's weights, and the client's own, on what it holds out."""
    site = _site(context)
    order = read_order(message.content, site.frame).order
    judged = site.judge(order, [Work(_client(context), order.round, _kept(context))])
    return Message(judged_record(judged), reply_to=message)


def _client(context: Context) -> int:
    return int(context.node_config["partition-id"])


def _kept(context: Context) -> Vectors:
    record = context.state.get(KEPT)
    if not isinstance(record, ArrayRecord):
        return {}
    return dict(record.to_torch_state_dict())


def _site(context: Context) -> Site:
    return _made(str(context.run_config["config"]))


@lru_cache(maxsize=1)
def _made(config: str) -> Site:
    """One a process: a simulation asks many clients of one run."""
    return Site(Federation.of(run_of(config)).setting)
