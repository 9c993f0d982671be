"""The ServerApp of a federated run: `serve` behind Flower's Grid. It writes into the run directory that it is told
of."""

from contextlib import closing
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from core.storage.artifact import read_weights
from core.storage.stop import StopRequest
from core.storage.store import RunDirectory, is_run
from federated.federation import Federation
from federated.flower.app_config import run_of
from federated.flower.remote import GridEngine
from federated.serve import serve
from federated.server import Watch

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Serves the run of the run config's `config`, in `run-dir`, or in a new directory `hanse-run` where that is
    empty."""
    run = run_of(str(context.run_config["config"]))
    where = Path(str(context.run_config.get("run-dir") or "hanse-run"))
    directory = RunDirectory.join(where) if is_run(where) else RunDirectory.create(where, verb="federate")
    with closing(directory):
        federation = Federation.of(run, read_weights(run.init) if run.init else None)
        engine = GridEngine(federation, grid, context.run_id)
        watch = Watch(directory.record, StopRequest(directory.logs))
        summary = serve(federation, engine, directory, watch)
        if summary["ended"] == "done":
            directory.summary(summary)
