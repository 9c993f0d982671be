"""A federation served from a run directory: everything a reader needs later is in it, and a run that was killed goes
on."""

import time
from collections.abc import Callable
from typing import Any

from core.errors import out_of_memory
from core.execute import Summary, digest, note_data, require_same_data
from core.storage import artifact
from core.storage.checkpoint import Checkpointer
from core.storage.lines import stays
from core.storage.store import RunDirectory
from federated.engine import Engine
from federated.exchange import Order
from federated.federation import Federation
from federated.judging import central_metrics
from federated.keeping import Keeping
from federated.partition.picture import svg_picture
from federated.server import Served, Server, Watch

CLIENTS = "clients"  # the folder of what clients keep
JUDGED = ("validation", "clients", "personal")  # splits of a round's evaluation
PICTURE = "partition.svg"
Record = dict[str, Any]


def serve(federation: Federation, engine: Engine, directory: RunDirectory, watch: Watch) -> Summary:
    """All rounds that are left, then the model and its scores. A run that was stopped saves no model.

    Raises DataError if the data is not what it was when the run began, WorkerError if the model diverges.
    """
    run, began = federation.run, time.perf_counter()
    require_data(federation, directory, watch.report)
    with out_of_memory(), Checkpointer(directory.checkpoints, keep_last=run.keep_last) as checkpoints:
        server = Server(federation, engine, watch, checkpoints, Keeping(directory.path / CLIENTS))
        begin(federation, directory, watch, server.state.round)
        served = server.serve()
        checkpoints.wait()
    if served.ended == "stopped":
        return {"ended": "stopped", "rounds": served.rounds}
    summary = conclude(federation, served, directory, watch.report)
    return {**summary, "wall_s": time.perf_counter() - began}


def require_data(federation: Federation, directory: RunDirectory, report: Callable[[Record], None]) -> None:
    """Notes and reports what the data is. Raises DataError if it is not what it was when the run began."""
    if federation.central is not None:
        require_same_data(directory, federation.central, federation.run.recipe.data.path)
        note_data(directory, federation.central, federation.run.recipe.data.path, report)


def begin(federation: Federation, directory: RunDirectory, watch: Watch, round: int) -> None:
    """Says what the federation is, of which `round` rounds are done; what was said of later ones goes."""
    again = ("test", *JUDGED) if round >= federation.run.rounds else ("test",)  # the last round is judged at the end
    directory.keep_metrics(lambda record: stays(record, "round", round, again))
    if federation.partition is not None and federation.central is not None:
        directory.replace(PICTURE, svg_picture(federation.partition, federation.central))
    watch.report({"event": "federation", **said_of(federation), "round": round})
    if policy := federation.run.statistics:
        said = f"classes and scores of each client's evaluation, but in blocks of {policy.least_count} examples"
        watch.report({"event": "withheld", "message": said})
    if hasattr(federation.run.strategy, "kept"):
        said = "norm layers stay with the clients; the server judges and saves the model with their first values"
        watch.report({"event": "warning", "message": said})


def said_of(federation: Federation) -> Record:
    """What a run says of itself when it begins."""
    sizes = federation.clients.sizes
    return {
        "clients": len(federation.clients),
        "cohort": federation.cohort,
        "examples_least": int(sizes.min()),
        "examples_most": int(sizes.max()),
        "executor": federation.setting.executor,
        "numbers": federation.frame.size,
    }


def conclude(
    federation: Federation, served: Served, directory: RunDirectory, report: Callable[[Record], None]
) -> Summary:
    """Saves the model; its scores on data that no client ever saw, and over what clients hold out."""
    run, task, clients = federation.run, federation.task, federation.clients
    order = Order(served.rounds, served.weights)
    splits = {name: central_metrics(federation, order, name) for name in ("test", "validation")}
    split = next((name for name, (metrics, _) in splits.items() if metrics), None)
    metrics, details = splits[split] if split else ({}, {})
    if split:
        report({"round": served.rounds, "rounds": run.rounds, "split": split, **metrics})
    federation.frame.put(task, served.weights)
    weights = task.network.state_dict()
    artifact.save(
        directory.model, run.recipe, clients.spec, clients.preprocess, weights, fingerprint=clients.fingerprint
    )
    return {
        "ended": served.ended,
        "rounds": served.rounds,
        "clients": len(clients),
        "parameters": sum(p.numel() for p in task.parameters()),
        "weights_sha256": digest(weights),
        "simulated_s": served.simulated_s,
        "split": split,
        "metrics": metrics,
        "details": details,
        "evaluation": served.evaluation,
    }
