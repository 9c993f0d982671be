"""The ClientApp of a federated run: `Site` behind Flower's messages. Its node's `partition-id` is the client's number.

What a client keeps from round to round lies in its Context's state and never leaves the node.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from core.errors import WorkerError
from core.storage.artifact import read_weights
from federated.exchange import Order, Vectors
from federated.federation import Federation
from federated.flower import own_data
from federated.flower.app_config import CONFIG, run_of
from federated.flower.judged_record import judged_record
from federated.flower.messages import METRICS, Instruction, read_order, reply_record, weights_record
from federated.intake import Work
from federated.site import Site
from federated.strategies.theirs import PROXIMAL

KEPT = "kept"  # the record of what a client keeps
CLIENT = "partition-id"  # in a node's config: the client's number


def client_app(site_of: Callable[[Context], Site]) -> ClientApp:
    """A ClientApp around the site that `site_of` gives, in whichever process a message arrives."""
    app = ClientApp()

    @app.query()
    def who(message: Message, context: Context) -> Message:
        """Which client this is, and of one with its own data how many examples it has: nobody else knows."""
        client, sizes = _client(context), dict[str, int]()
        if own_data.reads_its_own(context.run_config, context.node_config):
            clients = site_of(context).setting.clients
            sizes = {"examples": int(clients.sizes[client]), "held-out": int(clients.held_out_sizes[client])}
        return Message(RecordDict({METRICS: MetricRecord({"client": client, **sizes})}), reply_to=message)

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
    return int(context.node_config[CLIENT])


def _kept(context: Context) -> Vectors:
    record = context.state.get(KEPT)
    if not isinstance(record, ArrayRecord):
        return {}
    return dict(record.to_torch_state_dict())


def _site(context: Context) -> Site:
    is_own = own_data.reads_its_own(context.run_config, context.node_config)
    node = tuple(sorted(context.node_config.items())) if is_own else None
    return _made(str(context.run_config[CONFIG]), context.run_id, node)


@lru_cache(maxsize=1)
def _made(config: str, run_id: int, node: tuple[tuple[str, Any], ...] | None) -> Site:
    """One a process: a simulation asks many clients of one run. `node`: the config of one that reads its own data."""
    run = run_of(config)
    if node is not None:
        told = dict(node)
        return Site(own_data.on_node(run, told, int(told[CLIENT])).setting)
    weights = read_weights(run.init) if run.init and run.recipe.freeze else None  # else every order holds all of them
    return Site(Federation.of(run, weights).setting)


app = client_app(_site)
