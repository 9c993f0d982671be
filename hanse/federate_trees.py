"""Grows trees across clients in a new run directory, for `hanse federate trees`."""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from core.config import apply, dump, parse, read, to_yaml
from core.data import Data
from core.execute import Summary, note_data
from core.metrics import Metrics
from core.pool import LocalPool, WorkerPool
from core.runtime import Record
from core.storage.path import user_path
from core.storage.store import RunDirectory, runs_root
from federated.partition.picture import svg_picture
from federated.run import FederateRun
from federated.serve import PICTURE
from federated.trees.booster import Rows, library
from federated.trees.client_app import measured
from federated.trees.config import Plan
from federated.trees.run import TreesRun
from federated.trees.server_app import Forest
from federated.trees.simulate import simulate_trees
from hanse.console import Console
from hanse.federate import Config, parse_federate
from hanse.opening import origin_of
from hanse.running import recorded, shown, stopping
from hanse.workers import Waiting, workers

VERB = "federate-trees"  # in run.json
MODEL = "booster.json"


class _Stopped(Exception):
    """The user asked to stop."""


def parse_trees(config: Config, overrides: Mapping[str, Any]) -> TreesRun:
    """The run that a file (or mapping) and overrides describe. Raises ConfigError."""
    mapping = dict(config) if isinstance(config, Mapping) else read(config)
    if not isinstance(config, Mapping):
        mapping.setdefault("name", Path(config).stem)
    return parse(TreesRun, apply(mapping, overrides))


def parse_any(file: str | Path, overrides: Mapping[str, Any]) -> TreesRun | FederateRun:
    """The run of any federation's file: one with a section `trees` grows them. Raises ConfigError."""
    return parse_trees(file, overrides) if "trees" in read(file) else parse_federate(file, overrides)


def grow(run: TreesRun, console: Console) -> tuple[Path, Summary]:
    """All rounds, or those until it is interrupted: then the summary's `ended` is `stopped`, and no model is kept."""
    library()  # what is missing, or wrong with the data, is said before anything is written
    partition, data = run.deal()
    clients = run.clients_of(partition, data)
    Plan.of(run.trees, data.spec, len(clients))
    with closing(_new_directory(run)) as directory:
        directory.config(to_yaml(dump(dataclasses.replace(run, run_dir=None))))
        directory.replace(PICTURE, svg_picture(partition, data))
        what = "ending after what the clients are doing now; trees cannot be resumed"
        with recorded(directory), stopping(directory, console, what) as asked:
            log = Log(run, directory, shown(console), asked)
            summary = _grown(run, clients, data, log)
        return directory.path, summary


def _new_directory(run: TreesRun) -> RunDirectory:
    origin = {**origin_of(VERB, run.seed), "workers": run.workers if run.engine == "pool" else 0}
    if run.run_dir is None:
        return RunDirectory.create(runs_root(), run.name, **origin)
    return RunDirectory.create(user_path(run.run_dir, "run_dir"), **origin)


def _grown(run: TreesRun, clients: Sequence[Data], data: Data, log: "Log") -> Summary:
    began, directory = time.perf_counter(), log.directory
    note_data(directory, data, run.data.path, log)
    sizes = [part.sizes["train"] for part in clients]
    cohort = len(clients) if run.trees.mode == "bagging" else 1
    said = {"clients": len(clients), "cohort": cohort, "examples_least": min(sizes), "examples_most": max(sizes)}
    log({"event": "federation", **said, "round": 0})
    try:
        with _pool(run, (log, log.asked)) as pool:
            if log.asked():
                raise _Stopped
            forest = simulate_trees(dataclasses.replace(run.trees, seed=run.seed), clients, pool, log, run.statistics)
    except _Stopped:
        directory.finish("stopped")
        return {"ended": "stopped", "rounds": log.rounds}
    directory.replace(f"model/{MODEL}", forest.model.decode())
    data.preprocess.save(directory.model)
    judged = _judged(run, data, forest)
    if judged["split"] in data.splits:
        log({"round": run.trees.rounds, "rounds": run.trees.rounds, "split": judged["split"], **judged["metrics"]})
    summary = {
        "ended": "done",
        "rounds": len(forest.rounds),
        "clients": len(clients),
        "faults": len(forest.faults),
        "model_sha256": hashlib.sha256(forest.model).hexdigest(),
        **judged,
        "wall_s": time.perf_counter() - began,
    }
    directory.summary(summary)
    directory.finish("done")
    return summary


def _judged(run: TreesRun, data: Data, forest: Forest) -> Summary:
    """The scores on rows that no client ever had; where there are none, those over what the clients hold out."""
    held_out = forest.rounds[-1]
    scores: Summary = {"split": "clients" if held_out else None, "metrics": held_out, "details": {}}
    plan = Plan.of(run.trees, data.spec, 1)
    for split in ("test", "validation"):
        if data.sizes[split]:
            metrics = Metrics.of(plan.target, plan.outputs, data.spec.classes, unit=data.unit)
            state = measured(forest.model, Rows.of(data, split, plan), plan)
            scores = {"split": split, "metrics": metrics.compute(state), "details": metrics.details(state)}
            break
    return {**scores, "evaluation": {"clients": {"metrics": held_out}} if held_out else {}}


@contextmanager
def _pool(run: TreesRun, waiting: Waiting) -> Iterator[WorkerPool]:
    if run.engine == "pool":
        with workers(
            run.workers,
            run.address,
            cpus_per_worker=run.cpus_per_worker,
            preload=("federated.trees.client_app",),
            waiting=waiting,
        ) as pool:
            yield pool
    else:
        with LocalPool() as local:
            yield local


class Log:
    """Writes into the run directory what is reported, and shows it; `rounds` have been grown so far.

    Raises `_Stopped` once the user has asked to stop, after an exchange: then no client is at work.
    """

    def __init__(
        self, run: TreesRun, directory: RunDirectory, show: Callable[[Record], None], asked: Callable[[], bool]
    ) -> None:
        self.run, self.directory, self.show, self.asked = run, directory, show, asked
        self.rounds = 0

    def __call__(self, record: Record) -> None:
        if record.get("event") == "exchange":
            self._exchange(record)
        elif record.get("event") == "failure":
            self.directory.record(record)  # with its traceback; the server says it too, in one line
        else:
            self.directory.record(record)
            self.show(record)

    def _exchange(self, record: Record) -> None:
        if record["type"] == "train":
            self.rounds = record["round"]
            told: Record = {"round": self.rounds, "rounds": self.run.trees.rounds, "split": "train"}
            told |= {"clients": record["clients"] - record["failed"], "failed": record["failed"]}
            told |= {name: record[name] for name in ("bytes_up", "bytes_down", "seconds")}
            self.directory.record({**told, "time": round(time.time(), 3)})
            self.show({key: value for key, value in told.items() if key != "seconds"})
        if self.asked():
            raise _Stopped
