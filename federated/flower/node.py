"""A node of a simulated Flower federation: what happens to one message, in whichever process it is."""

import contextlib
import copy
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.supercore.run import Run

from core.pool import Failure, Shared
from core.randomness import seed_of
from core.unhurried import spare_the_compiler
from federated.flower.arrays import copy_of

spare_the_compiler()  # also for optimizers that an app makes
FIRST_NODE = 2  # the node of partition 0; 1 is the server and 0 is reserved


@dataclass(frozen=True)
class Nodes:
    """Those of a run. `client` gives the ClientApp in whichever process calls it."""

    client: Callable[[], ClientApp]
    clients: int
    run: Run
    run_config: UserConfig
    seed: int = 0

    @property
    def ids(self) -> range:
        """Stable from run to run: partition + 2."""
        return range(FIRST_NODE, FIRST_NODE + self.clients)

    def context(self, node: int) -> Context:
        """A node's context before its first message."""
        place: UserConfig = {"partition-id": node - FIRST_NODE, "num-partitions": self.clients}
        return Context(self.run.run_id, node, place, RecordDict(), dict(self.run_config))


@dataclass(frozen=True)
class Item:
    """One message on its way to a worker. Of records that many messages carry only the numbers travel, in `links`."""

    message: Message
    links: dict[str, int]
    context: Context
    seed: int


@dataclass(frozen=True)
class Answer:
    """What comes back. No context where the client failed: then that of before stays."""

    reply: Message
    context: Context | None = None
    failure: Failure | None = None


def answer(client: Callable[[], ClientApp], shared: Shared[dict[int, ArrayRecord]] | None, item: Item) -> Answer:
    """One message to one node. What the app is given is its own, and what it gives back is nobody else's."""
    message, context = copy.copy(item.message), copy.copy(item.context)
    message.content, context.state = copied(message.content), copied(context.state)
    context.node_config, context.run_config = dict(context.node_config), dict(context.run_config)
    for name, number in item.links.items():
        assert shared is not None
        message.content[name] = _copied(shared.get()[number])
    if time.time() > message.metadata.created_at + message.metadata.ttl:
        return Answer(Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, "the message is too old"), reply_to=message))
    app = client()
    with addressed(item.seed):
        try:
            reply = app(message, context)
            if not isinstance(reply, Message):
                raise TypeError(f"the ClientApp gave a {type(reply).__name__}, not a Message")
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the reply says it
            failure = Failure.of(error)
            reason = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"{failure.kind}: {failure.message}")
            return Answer(Message(reason, reply_to=message), failure=failure)
    reply = copy.copy(reply)
    if reply.has_content():
        reply.content = copied(reply.content)
    return Answer(reply, context)


def copied(content: RecordDict) -> RecordDict:
    """A copy with nothing in it that can change and is shared. `copy.deepcopy` takes more than twice as long."""
    return RecordDict({name: _copied(record) for name, record in content.items()})


def _copied(record: Any) -> Any:
    new = record.copy()
    for key, value in record.items():
        if isinstance(value, Array):
            new[key] = copy_of(value)
        elif isinstance(value, list):
            new[key] = list(value)
    return new


@contextlib.contextmanager
def addressed(*key: int | str) -> Iterator[None]:
    """Within it the global generators of `random`, numpy and torch begin at the key; then they go on as before.

    So an app that draws from them gives the same numbers on any pool.
    """
    seed = seed_of(*key)
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # `torch.manual_seed` visits every backend, which takes 20 times as long
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
