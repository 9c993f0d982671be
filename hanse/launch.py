"""Starts a training run in a new directory, or goes on in an old one, here or on Ray: for command and API alike."""

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from core import support
from core.config import apply, dump_run, parse_run, read, to_yaml
from core.errors import ConfigError, ResourceError
from core.execute import Summary, execute
from core.recipe import TrainRun
from core.runtime import Record, Runtime, choose_device
from core.storage import artifact
from core.storage.store import RunDirectory, find_run, is_run, runs_root
from hanse import repeat
from hanse.console import Console, JsonConsole
from hanse.find import find_model
from hanse.interrupt import interruptible
from hanse.report import write_report
from hanse.writer import continuations

# Of a recipe, what may be other when a run goes on: none of it moves a weight of a step that was taken.
TRAIN_FREE = ("steps", "patience", "log_every", "checkpoint_every", "keep_last", "evaluate_batch")
FREE = {"name", *(f"train.{name}" for name in TRAIN_FREE)}
# Of a repeat, members that have ended are not trained again: they must have had the same training.
FIXED_IN_REPEAT = {"train.steps", "train.patience"}
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
    directory, run = _open(run)
    with closing(directory):
        summary = directory.run.summary()
        if run.resume and (message := _finished(summary, run)):
            console.event("finished", message=message)
            directory.finish("done")
            return directory.path, summary
        directory.config(to_yaml(dump_run(dataclasses.replace(run, run_dir=None, resume=False))))
        with _recorded(directory), _stopping(directory, console, run) as stopping:
            summary = _work(run, directory, console, stopping)
        return directory.path, summary


# --- the run directory ---------------------------------------------------------------------------------------------


def _open(run: TrainRun) -> tuple[RunDirectory, TrainRun]:
    """A new directory, or the one to go on in; and the run, with what going on takes over from before."""
    if isinstance(run.resume, str):
        return _reopen(find_run(runs_root(), run.resume).path, run)
    if run.run_dir is None:
        return RunDirectory.create(runs_root(), run.recipe.name, **_origin(run)), run
    path = Path(os.path.expanduser(run.run_dir))
    if run.resume and is_run(path):
        return _reopen(path, run)
    return RunDirectory.create(path, **_origin(run)), run


def _reopen(path: Path, run: TrainRun) -> tuple[RunDirectory, TrainRun]:
    file = path / "config.yaml"
    if file.is_file():  # else it was killed in its first moment, before anything was trained
        saved = parse_run(TrainRun, read(file))
        _require_same_recipe(saved, run, file)
        _require_same_init(saved, run, file)
        run = dataclasses.replace(run, init=saved.init)
    return RunDirectory.open(path), run


def _require_same_recipe(saved: TrainRun, run: TrainRun, file: Path) -> None:
    old, new = dict(_leaves(dump_run(saved))), dict(_leaves(dump_run(run)))
    where = {f.name for f in dataclasses.fields(TrainRun)} - {"repeat"}
    free = FREE - FIXED_IN_REPEAT if saved.repeat else FREE
    for key in [*old, *new]:
        was, now = (repr(config[key]) if key in config else "absent" for config in (old, new))
        if was == now or key in free or key.partition(".")[0] in where:
            continue
        other = ", or start a new run" if saved.repeat else " (train.steps may grow), or start a new run with init="
        raise ConfigError(
            f"{key}: is {now}, and was {was} when this run began ({file}); resume with the same recipe{other}"
        )


def _require_same_init(saved: TrainRun, run: TrainRun, file: Path) -> None:
    if run.init is None or (saved.init is not None and Path(run.init).resolve() == Path(saved.init).resolve()):
        return
    raise ConfigError(
        f"init: is {run.init!r}, and was {saved.init!r} when this run began ({file}); a resumed run goes on from its "
        "own checkpoints; leave init out, or start a new run with it"
    )


def _leaves(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _finished(summary: Summary, run: TrainRun) -> str:
    """Why a run has nothing left to do, and how it would; empty if it has something to do."""
    train = run.recipe.train
    if not summary:
        return ""
    if summary["ended"] == "early" and train.patience is not None:
        # from what the run did, not from the patience it had: that may have been raised since, by a run that was killed
        bad = (summary["steps"] - summary["best"]["step"]) // train.evaluate_every
        if bad >= train.patience:
            return (
                f"this run was stopped early, after {bad} evaluations without a better {train.metric}; "
                "raise train.patience to go on with it"
            )
    if run.repeat:
        return "all members of this run have come to their end; start a new run for more of them"
    is_over = summary["steps"] >= train.steps
    return "this run has come to its end before; raise train.steps to go on with it" if is_over else ""


def _origin(run: TrainRun) -> dict[str, Any]:
    """What run.json tells about where the numbers come from."""
    versions = {name: metadata.version(name) for name in ("hanse", "torch", "ray")}
    versions["python"] = ".".join(map(str, sys.version_info[:3]))
    return {
        "verb": "train",
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "seed": run.recipe.seed,
        "init": run.init,
        "workers": dump_run(run)["workers"],
        "versions": versions,
        "cpus": os.cpu_count(),
    }


# --- the work ------------------------------------------------------------------------------------------------------


@contextmanager
def _recorded(directory: RunDirectory) -> Iterator[None]:
    """However the run ends, run.json says so and report.html shows it."""
    try:
        yield
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        try:
            directory.finish("stopped" if interrupted else "failed", str(error) or type(error).__name__)
            write_report(directory.path)
        except ResourceError as full:  # a full disk may be what ended it
            error.add_note(f"and run.json or the report could not be written: {full}")
        raise
    write_report(directory.path)


@contextmanager
def _stopping(directory: RunDirectory, console: Console, run: TrainRun) -> Iterator[Callable[[], bool]]:
    what = (
        "finishing this step; members that have ended are kept" if run.repeat else "finishing this step and saving it"
    )

    def first() -> None:
        console.event("stopping", message=f"{what}; Ctrl-C again ends at once")

    def abort() -> None:
        directory.finish("stopped", "aborted by a second signal")
        console.close()

    with interruptible(first, abort) as stopping:
        yield stopping


def _work(run: TrainRun, directory: RunDirectory, console: Console, stopping: Callable[[], bool]) -> Summary:
    is_for_programs = isinstance(console, JsonConsole)

    def show(record: Record) -> None:
        if record.get("event") == "started" and not record["step"] and not is_for_programs:
            return  # the first line of progress says as much
        if "event" in record:
            fields = {key: value for key, value in record.items() if key not in ("event", "time")}
            console.event(str(record["event"]), **fields)
        else:
            console.progress(record)

    def report(record: Record) -> None:
        directory.record(record)
        show(record)

    if run.repeat is not None:
        summary = repeat.train(run, run.repeat, directory, repeat.Watch(show, stopping, in_sum=not is_for_programs))
    elif run.workers == 0:
        summary = execute(run, directory, Runtime(choose_device(run.device), report=report, should_stop=stopping))
    else:
        from cluster import data_parallel

        summary = data_parallel.train(run, directory, show, stopping)
    if summary["ended"] == "stopped":
        directory.finish("stopped")
        return summary
    if run.recipe.goal.target == "token":
        summary["samples"] = continuations(directory.model)
    directory.summary(summary)
    directory.finish("done")
    return summary
