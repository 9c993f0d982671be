"""Starts a training run in a new directory, or goes on in an old one, here or on Ray: for command and API alike."""

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from core import support
from core.config import apply, dump_run, parse_run, read, to_yaml
from core.errors import ConfigError
from core.execute import Summary, execute
from core.recipe import Training, TrainRun
from core.runtime import Runtime, choose_device
from core.storage import artifact
from core.storage.checkpoint import latest_step
from core.storage.store import Run, RunDirectory
from hanse import repeat
from hanse.console import Console, JsonConsole
from hanse.find import find_model
from hanse.opening import Resume, open_run
from hanse.running import recorded, reporting, shown, stopping
from hanse.workers import LOCAL, address_of, threads_of_worker
from hanse.writer import continuations

# Of a recipe, what may be other when a run goes on: none of it moves a weight of a step that was taken.
TRAIN_FREE = ("steps", "epochs", "patience", "log_every", "checkpoint_every", "keep_last", "evaluate_batch")
FREE = {"name", *(f"train.{name}" for name in TRAIN_FREE)}
WHERE = {f.name for f in dataclasses.fields(TrainRun)} - {"recipe", "repeat"}
# Of a repeat, members that have ended are not trained again: they must have had the same training.
FIXED_IN_REPEAT = {"train.steps", "train.epochs", "train.patience"}
Config = str | Path | Mapping[str, Any]


def parse_train(config: Config, overrides: Mapping[str, Any]) -> TrainRun:
    """The run that a file (or mapping) and overrides describe. Raises ConfigError."""
    mapping = dict(config) if isinstance(config, Mapping) else read(config)
    if not isinstance(config, Mapping):
        mapping.setdefault("name", Path(config).stem)
    run = parse_run(TrainRun, apply(mapping, overrides))
    support.check(run)
    return run


def train(run: TrainRun, console: Console) -> tuple[Path, Summary]:
    """Trains to the end, or until it is interrupted: then the summary's `ended` is `stopped`."""
    if run.init:
        run = dataclasses.replace(run, init=str(find_model(run.init)))
        artifact.require_single(str(run.init))
    if run.workers == 0:
        choose_device(run.device)  # before anything is written
    free = FREE - FIXED_IN_REPEAT if run.repeat else FREE
    other = "" if run.repeat else "train.steps may grow"
    directory, run = open_run(run, "train", Resume(free, WHERE, other, require_more))
    with closing(directory):
        summary = directory.run.summary()
        if run.resume and (message := _finished(directory.run, run)):
            console.event("finished", message=message)
            directory.finish("done")
            return directory.path, summary
        directory.config(to_yaml(dump_run(dataclasses.replace(run, run_dir=None, resume=False))))
        with recorded(directory), stopping(directory, console, "finishing this step and saving it") as asked:
            summary = _work(run, directory, console, asked)
        return directory.path, summary


# --- the work ------------------------------------------------------------------------------------------------------


def in_steps(run: TrainRun, before: Run) -> Training:
    """The numbers of a run that resumes, in steps of the data that `before` has noted."""
    sizes = (before.record.get("data") or {}).get("sizes") or {}
    return run.recipe.train.over(sizes["train"]) if "train" in sizes else run.recipe.train


def require_more(run: TrainRun, before: Run) -> None:
    """Raises ConfigError if the run is to end before a step that is made already."""
    train = in_steps(run, before)
    made = max(latest_step(before.path / "checkpoints"), before.summary().get("steps", 0))
    if made > train.steps:
        key = "train.steps" if train.epochs is None else "train.epochs"
        raise ConfigError(
            f"{key}: ends after {train.steps:,} steps, and this run has made {made:,}; set train.steps to {made} or "
            f"more, or start a new run with init={before.id}"
        )


def _finished(before: Run, run: TrainRun) -> str:
    """Why a run has nothing left to do, and how it would; empty if it has something to do."""
    summary, train = before.summary(), in_steps(run, before)
    if not summary:
        return ""
    if summary["ended"] == "early" and train.patience is not None:
        # from what the run did, not from the patience it had: that may have been raised since, by a run that was killed
        bad = summary["best"]["bad_evaluations"]
        if bad >= train.patience:
            return (
                f"this run was stopped early, after {bad} evaluations without a better {train.metric}; "
                "raise train.patience to go on with it"
            )
    if run.repeat:
        return "all members of this run have come to their end; start a new run for more of them"
    is_over = summary["steps"] >= train.steps
    return "this run has come to its end before; raise train.steps to go on with it" if is_over else ""


def _work(run: TrainRun, directory: RunDirectory, console: Console, asked: Callable[[], bool]) -> Summary:
    show = shown(console)
    if run.repeat is not None:
        watch = repeat.Watch(show, asked, in_sum=not isinstance(console, JsonConsole))
        summary = repeat.train(run, run.repeat, directory, watch)
    elif run.workers == 0:
        runtime = Runtime(choose_device(run.device), report=reporting(directory, show), should_stop=asked)
        with threads_of_worker(run.cpus_per_worker) if run.recipe.train.shards > 1 else nullcontext():
            summary = execute(run, directory, runtime)
    else:
        from cluster import data_parallel

        address = address_of(run.address)
        there = dataclasses.replace(run, address=None if address == LOCAL else address)
        summary = data_parallel.train(there, directory, show, asked)
    if summary["ended"] == "stopped":
        directory.finish("stopped")
        return summary
    if run.recipe.goal.target == "token":
        summary["samples"] = continuations(directory.model)
    directory.summary(summary)
    directory.finish("done")
    return summary
