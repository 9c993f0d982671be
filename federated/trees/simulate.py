"""A whole forest in one go, over a pool of workers: Flower's apps on Flower's grid, with the clients at hand.

forest = simulate_trees(TreesConfig(rounds=30), [clients.data(i, seed) for i in range(len(clients))])
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.run import Run

from core.data import Data
from core.errors import ConfigError
from core.pool import LocalPool, Shared, WorkerPool
from federated.flower.grid import PoolGrid
from federated.flower.node import Nodes
from federated.policy import Policy
from federated.trees.booster import library
from federated.trees.client_app import client_app
from federated.trees.config import TreesConfig
from federated.trees.server_app import Forest, server_app

RUN = 1  # Flower's number of the run, and of the server in it: nothing depends on them


def simulate_trees(
    config: TreesConfig,
    clients: Sequence[Data],
    pool: WorkerPool | None = None,
    report: Callable[[dict[str, Any]], None] = lambda record: None,
    policy: Policy | None = None,
) -> Forest:
    """Grows a forest across clients that train on `train` and are measured on `validation`. The same on any pool.

    report: called with what passes between server and clients, see `federated.flower.traffic`, and with what the
    server says, see `server_app`; an error that it raises at an event `exchange` ends the run.
    policy: see `client_app`.

    ConfigError without clients, without the library, or for data that trees do not take; WorkerError if a client is not
    ready or none ever trained.
    """
    library()  # before anything is started
    if not clients:
        raise ConfigError("trees: there is no client; give at least one")
    pool = pool or LocalPool()
    shared = pool.share(tuple(clients))
    nodes = Nodes(partial(_app, shared, policy), len(clients), Run.create_empty(RUN), {}, config.seed)
    found: list[Forest] = []
    grid = PoolGrid(pool, nodes, report)
    server = server_app(config, clients[0].spec, len(clients), found.append, clients[0].unit, grid.say)
    try:
        with _quiet():
            grid.serve(lambda: server(grid, Context(RUN, RUN, {}, RecordDict(), {})))
    finally:
        shared.release()
    return found[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Flower logs a page for every round."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _app(shared: Shared[tuple[Data, ...]], policy: Policy | None) -> ClientApp:
    return client_app(lambda number: shared.get()[number], policy)
