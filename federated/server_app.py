"""The ServerApp of a federated run: `serve` behind Flower's Grid, and what it keeps in a run directory."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from core.config import dump_run, to_yaml
from core.errors import ConfigError
from core.storage.artifact import read_weights
from core.storage.stop import StopRequest
from core.storage.store import RunDirectory, is_run, read_run, runs_root
from federated.federation import Federation
from federated.flower import own_data, theirs
from federated.flower.app_config import CONFIG, JOINED, OWN_DATA, RUN_DIR, run_of
from federated.flower.remote import GridEngine, nodes_of
from federated.run import FederateRun
from federated.serve import serve
from federated.server import Watch
from federated.strategies.theirs import Theirs

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Serves the run of the run config's `config`.

    Its directory is `run-dir`, in which an earlier run of the same config goes on; where that is empty, it is a new one
    in the directory that HANSE_RUNS names.
    """
    run = run_of(str(context.run_config[CONFIG]))
    with _directory(run, context.run_config) as directory:
        if context.run_config.get(OWN_DATA):
            nodes = nodes_of(grid, own_data.clients_of(run), run.timeout_s)
            sizes = {client: (node.examples, node.held_out) for client, node in nodes.items()}
            federation = own_data.on_server(run, sizes)
        else:
            federation = Federation.of(run, read_weights(run.init) if run.init else None)
            nodes = nodes_of(grid, len(federation.clients), run.timeout_s)
        watch = Watch(directory.record, StopRequest(directory.logs))
        if isinstance(run.strategy, Theirs):
            places = {client: node.id for client, node in nodes.items()}
            summary = theirs.serve(federation, grid, places, directory, watch)
        else:
            summary = serve(federation, GridEngine(federation, grid, context.run_id, nodes=nodes), directory, watch)
        if summary["ended"] == "done":
            directory.summary(summary)


@contextmanager
def _directory(run: FederateRun, told: Mapping[str, Any]) -> Iterator[RunDirectory]:
    """The run's directory; it says how the run ended, unless the process that made it does."""
    if told.get(JOINED):
        with RunDirectory.join(Path(str(told[RUN_DIR]))) as directory:
            yield directory
        return
    with _own_directory(run, str(told.get(RUN_DIR) or "")) as directory:
        try:
            yield directory
        except BaseException as error:
            directory.finish("failed", str(error) or type(error).__name__)
            raise
        directory.finish("done" if directory.run.summary() else "stopped")


def _own_directory(run: FederateRun, where: str) -> RunDirectory:
    if where and is_run(Path(where)):
        return _reopened(run, Path(where))
    if not where and not os.environ.get("HANSE_RUNS"):
        raise ConfigError(
            f"{RUN_DIR}: it is not said where runs are kept; start the SuperLink with HANSE_RUNS=DIRECTORY, or name a "
            f"directory in the run config: {RUN_DIR}=DIRECTORY"
        )
    place, name = (Path(where), None) if where else (runs_root(), run.recipe.name)
    directory = RunDirectory.create(place, name, verb="federate", seed=run.recipe.seed)
    directory.config(to_yaml(dump_run(run)))
    return directory


def _reopened(run: FederateRun, where: Path) -> RunDirectory:
    if isinstance(run.strategy, Theirs):
        raise ConfigError(f"{RUN_DIR}: {where} holds a run, and Flower's strategies cannot go on; name a new directory")
    if run.is_stateful:
        raise ConfigError(f"{RUN_DIR}: {where} holds a run, and its clients' state ended with it; name a new directory")
    if read_run(where).config() != to_yaml(dump_run(run)):
        raise ConfigError(f"{RUN_DIR}: {where} holds a run of another config; name a new directory")
    directory = RunDirectory.open(where)
    StopRequest(directory.logs).clear()
    return directory
