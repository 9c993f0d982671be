"""Flower's own strategies, unchanged, over a Hanse recipe: on a pool of workers, or on a Grid of Flower's own."""

import contextlib
import difflib
import functools
import importlib
import inspect
import logging
import time
import traceback
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from flwr.app import ConfigRecord
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flowers
from flwr.supercore.run import Run, RunNotRunningException

from core.errors import ConfigError, HanseError, WorkerError, out_of_memory
from core.execute import Summary
from core.pool import Shared, WorkerPool
from core.storage.store import RunDirectory
from federated.client_app import client_app
from federated.federation import Federation
from federated.flower.grid import PoolGrid
from federated.flower.messages import weights_record
from federated.flower.node import FIRST_NODE, Nodes, addressed
from federated.flower.overseen import Overseen, Stopped
from federated.serve import begin, conclude, require_data
from federated.server import Served, Watch
from federated.site import Setting, site_of
from federated.strategies.theirs import Theirs

NODES = ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes")  # Flower waits for so many, for ever
UNFIT = {"FedXgb": "it joins trees, and has no use for weights", "DifferentialPrivacy": "it wraps another strategy"}


# --- running -------------------------------------------------------------------------------------------------------


def simulate(federation: Federation, pool: WorkerPool, directory: RunDirectory, watch: Watch) -> Summary:
    """`serve` over a pool's workers."""
    clients, summaries = len(federation.clients), list[Summary]()
    setting = pool.share(federation.setting)
    run = Run.create_empty(uuid.uuid4().int >> 65)
    nodes = Nodes(functools.partial(_client_of, setting), clients, run, {}, federation.run.recipe.seed)
    grid = PoolGrid(pool, nodes, lambda record: None)
    places = {client: FIRST_NODE + client for client in range(clients)}
    with _warnings_only(watch):
        grid.serve(lambda: summaries.append(serve(federation, grid, places, directory, watch)))
    setting.release()
    return summaries[0]


def _client_of(setting: Shared[Setting]) -> ClientApp:
    return client_app(lambda context: site_of(setting.get()))


def serve(
    federation: Federation, grid: Grid, nodes: Mapping[int, int], directory: RunDirectory, watch: Watch
) -> Summary:
    """All rounds by the strategy's own `start`, then the model and its scores. `nodes`: the node of each client.

    Raises ConfigError if the strategy cannot be made, WorkerError if it fails, the model diverges or no reply counts.
    """
    run, began = federation.run, time.perf_counter()
    assert isinstance(run.strategy, Theirs)
    strategy = strategy_of(run.strategy, len(federation.clients))
    require_data(federation, directory, watch.report)
    begin(federation, directory, watch, 0)
    overseen = Overseen(grid, federation, nodes, watch)
    first, wants = weights_record(federation.frame.named(federation.first)), ConfigRecord({"reply": "weights"})
    with out_of_memory(), addressed(run.recipe.seed, "server"):
        try:
            strategy.start(overseen, first, run.rounds, run.timeout_s, wants, evaluate_fn=overseen.take)
        except Stopped:
            return {"ended": "stopped", "rounds": overseen.round}
        except (HanseError, RunNotRunningException):
            raise
        except Exception as error:
            raise _failed(run.strategy.name, error) from error
    overseen.barren.require_any(run.rounds)
    served = Served(overseen.weights, overseen.round, "done", 0.0, overseen.evaluation)
    return {**conclude(federation, served, directory, watch.report), "wall_s": time.perf_counter() - began}


def _failed(name: str, error: Exception) -> WorkerError:
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{place.filename.rpartition('/')[2]}:{place.lineno}"
    failed = WorkerError(f"strategy: {name} failed at {where}: {_said(error)}")
    failed.add_note("".join(traceback.format_exception(error)))
    return failed


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@contextlib.contextmanager
def _warnings_only(watch: Watch) -> Iterator[None]:
    """Flower's log of its rounds says what our records say; its warnings are passed on."""

    class Teller(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            watch.report({"event": "warning", "message": record.getMessage()})

    logger = logging.getLogger("flwr")
    handlers, logger.handlers = logger.handlers, [Teller(logging.WARNING)]
    try:
        yield
    finally:
        logger.handlers = handlers


# --- strategies by name --------------------------------------------------------------------------------------------


def strategy_of(config: Theirs, clients: int) -> flowers.Strategy:
    """The strategy that a config means. Raises ConfigError: there is none, or it cannot be made, or not be served."""
    kind = _class_of(config.name)
    parameters = inspect.signature(kind).parameters
    takes_any = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in config.arguments:
        if name not in parameters and not takes_any:
            raise ConfigError(f"strategy.arguments.{name}: {config.name} has no such argument{_near(name, parameters)}")
    try:
        strategy = kind(**config.arguments)
    except Exception as error:
        raise ConfigError(f"strategy.arguments: {config.name} cannot be made of them: {_said(error)}") from error
    for name in NODES:
        if getattr(strategy, name, 0) > clients:
            raise ConfigError(
                f"strategy.arguments.{name}: {config.name} would wait for {getattr(strategy, name)} nodes and there "
                f"are {clients} clients; raise clients, or lower it"
            )
    return strategy


def _class_of(name: str) -> type[flowers.Strategy]:
    module, colon, own = name.partition(":")
    if colon:
        try:
            found = importlib.import_module(module)
        except Exception as error:
            raise ConfigError(
                f"strategy.name: {module} cannot be imported: {_said(error)}; install it, or put its directory on "
                "PYTHONPATH"
            ) from error
    else:
        own, found = name, flowers
        for start, why in UNFIT.items():
            if own.startswith(start):
                raise ConfigError(f"strategy.name: {own} does not go with a recipe: {why}")
    kinds: dict[str, type[flowers.Strategy]] = {n: kind for n, kind in vars(found).items() if _is_strategy(kind)}
    if own not in kinds:
        where = module if colon else "flwr.serverapp.strategy (another one is named package.module:Class)"
        raise ConfigError(f"strategy.name: there is no strategy {own!r} in {where}{_near(own, kinds)}")
    return kinds[own]


def _is_strategy(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, flowers.Strategy) and not inspect.isabstract(kind)


def _near(word: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(word, known, 1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else f"; there are {', '.join(known)}"
