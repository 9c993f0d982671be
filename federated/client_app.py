"""The ClientApp of a federated run: `Site` behind Flower's messages. Its node's `partition-id` is the client's number.

What a client keeps from round to round lies in its Context's state and never leaves the node.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from core.errors import WorkerError
from core.storage.artifact import read_weights
from federated.exchange import Order, Vectors
from federated.federation import Federation
from federated.flower.app_config import run_of
from federated.flower.judged_record import judged_record
from federated.flower.messages import METRICS, Instruction, read_order, reply_record, weights_record
from federated.intake import Work
from federated.site import Site
from federated.strategies.theirs import PROXIMAL

KEPT = "kept"  # the record of what a client keeps


def client_app(site_of: Callable[[Context], Site]) -> ClientApp:
    """A ClientApp around the site that `site_of` gives, in whichever process a message arrives."""
    app = ClientApp()

    @app.query()
    def who(message: Message, context: Context) -> Message:
        """Which client this is."""
        return Message(RecordDict({METRICS: MetricRecord({"client": _client(context)})}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(_trained(site_of(context), message.content, context), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        """Judges the order's weights, and the client's own, on what it holds out."""
        site = site_of(context)
        order = read_order(message.content, site.frame).order
        judged = site.judge(order, [Work(_client(context), order.round, _kept(context))])
        if judged.failed:
            raise WorkerError(f"client {_client(context)}: {judged.failed[0].fault}")
        return Message(judged_record(judged), reply_to=message)

    return app


def _trained(site: Site, content: RecordDict, context: Context) -> RecordDict:
    """One round's work: the update that the strategy wants, or all weights, which Flower's own strategies average."""
    client, told = _client(context), read_order(content, site.frame)
    order = _order(told)
    (sent,) = site.answers(order, [Work(client, order.round, _kept(context))])
    if sent.reply is None:
        raise WorkerError(f"client {client}: {sent.told.fault}")
    if sent.kept:
        context.state[KEPT] = weights_record(sent.kept)
    reply = site.whole(order, sent.reply) if told.wants == "weights" else sent.reply
    numbers = {"loss": sent.told.loss, "examples": float(sent.told.examples), "norm": sent.told.norm}
    return reply_record(reply, order.round, told.run_id, numbers)


def _order(told: Instruction) -> Order:
    """The order, with what Flower's FedProx sends in the settings beside it."""
    mu = told.config.get(PROXIMAL)
    return told.order if mu is None else replace(told.order, extra={PROXIMAL: torch.tensor(float(mu))})


def _client(context: Context) -> int:
    return int(context.node_config["partition-id"])


def _kept(context: Context) -> Vectors:
    record = context.state.get(KEPT)
    if not isinstance(record, ArrayRecord):
        return {}
    return dict(record.to_torch_state_dict())


@lru_cache(maxsize=1)
def _site(config: str, run_id: int) -> Site:
    """One a process: a simulation asks many clients of one run."""
    run = run_of(config)
    weights = read_weights(run.init) if run.init and run.recipe.freeze else None  # else every order holds all of them
    return Site(Federation.of(run, weights).setting)


app = client_app(lambda context: _site(str(context.run_config["config"]), context.run_id))
