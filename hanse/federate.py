"""Runs a federation in a new directory, or goes on in an old one, on any engine: for command and API alike."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from core.config import apply, dump_run, parse_run, read, to_yaml
from core.errors import ConfigError, DataError
from core.execute import Summary
from core.pool import LocalPool, WorkerPool
from core.runtime import Record, choose_device
from core.storage import artifact
from core.storage.checkpoint import Restored, Snapshot, latest_step, load
from core.storage.steps import step_of, steps
from core.storage.store import Run, RunDirectory, read_run
from federated import support
from federated.engine import Engine, PoolEngine
from federated.federation import Federation
from federated.intake import Told
from federated.run import FederateRun
from federated.serve import serve
from federated.server import Server, Watch
from federated.strategies.theirs import Theirs
from hanse import deployed
from hanse.console import Console, JsonConsole
from hanse.find import find_model
from hanse.opening import Resume, open_run, saved_init
from hanse.running import recorded, reporting, shown, stopping
from hanse.workers import Waiting, threads_of_worker, workers

# What may be other when a federation goes on: none of it moves a weight of a round that was finished.
FREE = {"name", "rounds", "train.evaluate_batch", "evaluate.every", "evaluate.clients", "evaluate.fine_tune_epochs"}
WHERE = {
    "engine", "workers", "cpus_per_worker", "address", "device", "checkpoint_every", "keep_last", "run_dir", "resume",
    "init",
}  # fmt: skip
Config = str | Path | Mapping[str, Any]


def parse_federate(config: Config, overrides: Mapping[str, Any]) -> FederateRun:
    """The run that a file (or mapping) and overrides describe. Raises ConfigError."""
    mapping = dict(config) if isinstance(config, Mapping) else read(config)
    if not isinstance(config, Mapping):
        mapping.setdefault("name", Path(config).stem)
    if "trees" in mapping:
        raise ConfigError("trees: this file grows trees; use `hanse federate trees`")
    run = parse_run(FederateRun, apply(mapping, overrides))
    support.check(run)
    return run


def simulate(run: FederateRun, console: Console) -> tuple[Path, Summary]:
    """All rounds, or those until it is interrupted: then the summary's `ended` is `stopped`."""
    if run.engine == "inproc":
        choose_device(run.device)  # before anything is written
    if run.init:
        run = dataclasses.replace(run, init=str(find_model(run.init)))
        artifact.require_single(str(run.init))
    init = run.init or saved_init(run, "federate")
    weights = artifact.read_weights(init) if init else None
    federation = Federation.of(run, weights)  # what is wrong with data or clients is said before anything is written
    if run.engine == "flower":
        deployed.require(federation)
    if isinstance(run.strategy, Theirs):
        from federated.flower import theirs

        theirs.strategy_of(run.strategy, len(federation.clients))
    free = FREE - {"rounds"} if run.is_asynchronous else FREE
    may_grow = "rounds may grow" if "rounds" in free else ""
    directory, run = open_run(run, "federate", Resume(free, WHERE, may_grow, require_more))
    with closing(directory):
        summary = directory.run.summary()
        if run.resume and summary and summary["rounds"] >= run.rounds:
            console.event("finished", message="this run has come to its end before; raise rounds to go on with it")
            directory.finish("done")
            return directory.path, summary
        directory.config(to_yaml(dump_run(dataclasses.replace(run, run_dir=None, resume=False))))
        what = "finishing this round" + ("" if isinstance(run.strategy, Theirs) else " and saving it")
        with recorded(directory), stopping(directory, console, what) as asked:
            summary = _work(dataclasses.replace(federation, run=run), directory, console, asked)
        return directory.path, summary


def require_more(run: FederateRun, before: Run) -> None:
    """Raises ConfigError if the run is to end before a round that is finished already."""
    made = max(latest_step(before.path / "checkpoints"), before.summary().get("rounds", 0))
    if made > run.rounds:
        raise ConfigError(f"rounds: is {run.rounds}, and this run has finished {made}; set rounds={made} or more")


def _work(federation: Federation, directory: RunDirectory, console: Console, asked: Callable[[], bool]) -> Summary:
    show = shown(console)
    (directory.path / "summary.json").unlink(missing_ok=True)  # of the rounds before, if it is gone on with

    def look(record: Record) -> None:
        if record.get("split") != "cohort":
            show(record if isinstance(console, JsonConsole) else readable(record))

    report = reporting(directory, look)
    if federation.run.engine == "flower":
        summary = deployed.serve(federation, directory, look, asked)
    elif isinstance(federation.run.strategy, Theirs):
        from federated.flower import theirs

        with pool_of(federation.run, (look, asked)) as pool:
            summary = theirs.simulate(federation, pool, directory, Watch(report, asked))
    else:
        with engine_of(federation, (look, asked)) as engine:
            summary = serve(federation, engine, directory, Watch(report, asked))
    if summary["ended"] == "stopped":
        directory.finish("stopped")
        return summary
    directory.summary(summary)
    directory.finish("done")
    return summary


def readable(record: Record) -> Record:
    """A record without what has no place in a line; the worst client in place of the whole spread."""
    spread = record.get("spread", {})
    short = {key: value for key, value in record.items() if not isinstance(value, Mapping | list) and key != "seconds"}
    for name in ("accuracy", "r2", "loss"):
        if name in spread:
            return {**short, f"worst_{name}": spread[name]["worst"]}
    return short


@contextmanager
def engine_of(federation: Federation, waiting: Waiting | None = None) -> Iterator[Engine]:
    """The engine that the run asks for, for as long as it is needed."""
    with pool_of(federation.run, waiting) as pool:
        yield PoolEngine(pool, federation.setting)


@contextmanager
def pool_of(run: FederateRun, waiting: Waiting | None) -> Iterator[WorkerPool]:
    """The workers that the run asks for: this process, or others. waiting: see `hanse.workers.workers`."""
    if run.engine == "pool":
        with workers(
            run.workers,
            run.address,
            cpus_per_worker=run.cpus_per_worker,
            preload=("federated.site",),
            waiting=waiting,
        ) as pool:
            yield pool
    else:
        with threads_of_worker(run.cpus_per_worker), LocalPool() as local:
            yield local


def replay(path: Path, round: int, client: int) -> tuple[Told, Told | None]:
    """Does one client's work of a finished round again, exactly: what it answers, and what it answered then.

    Raises DataError if the run is not a federation, ConfigError if the client was not asked in that round.
    """
    run = parse_run(FederateRun, read(path / "config.yaml"))
    if run.recipe.privacy and run.recipe.privacy.noise == "secure":
        raise ConfigError("privacy.noise: secure noise cannot be drawn again, so no round of this run can be replayed")
    if isinstance(run.strategy, Theirs):
        raise ConfigError(
            "strategy.kind: no round of Flower's strategies can be replayed, for they keep no checkpoints"
        )
    weights = artifact.read_weights(run.init) if run.init else None
    federation = Federation.of(run, weights)
    if not 1 <= round <= run.rounds:
        raise ConfigError(f"round: this run has rounds 1 to {run.rounds}, got {round}")
    with engine_of(dataclasses.replace(federation, run=dataclasses.replace(run, engine="inproc"))) as engine:
        server = Server(federation, engine, checkpoints=Before(path / "checkpoints", round, run.is_stateful))
        told = server.answer(round, client)
    return told, _recorded_answer(read_run(path), round, client)


def _recorded_answer(run: Run, round: int, client: int) -> Told | None:
    """What metrics.jsonl says of a client's work."""
    for record in run.metrics():
        if record.get("split") == "cohort" and record["round"] == round and client in record["cohort"]["client"]:
            columns = record["cohort"]
            place = columns["client"].index(client)
            return Told(client, columns["loss"][place], columns["examples"][place], columns["norm"][place])
    return None


class Before:
    """The newest checkpoint from before a round, to go on from; none where clients keep what only the end has."""

    def __init__(self, directory: Path, round: int, never: bool) -> None:
        self.directory, self.round, self.never = directory, round, never

    def save(self, snapshot: Snapshot, best: bool = False) -> None:
        """Nothing is saved."""

    def wait(self) -> None:
        """Nothing is under way."""

    def load_latest(self) -> Restored:
        """The newest one that is whole."""
        for step in [] if self.never else reversed(steps(self.directory)):
            if step_of(step) < self.round:
                with suppress(DataError):
                    return Restored(load(step), ())
        return Restored(None, ())
