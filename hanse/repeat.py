"""One recipe trained many times: its members here or over a pool of workers, then all of them as one ensemble."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from core.config import override
from core.data import load
from core.ensemble.repeat import MemberSpec, Repeat, members
from core.ensemble.spread import spread_of
from core.ensemble.train import Share, summaries, train_members, train_share
from core.errors import ConfigError, WorkerError
from core.execute import TRAIN_LONGER, Summary, note_data, require_same_data
from core.pool import WorkerPool
from core.population.executor import chosen
from core.population.places import clear, reached
from core.recipe import TrainRun
from core.runtime import Record, Runtime, choose_device
from core.storage import artifact
from core.storage.stop import StopRequest
from core.storage.store import RunDirectory
from hanse import inference
from hanse.crowd import Crowd
from hanse.output import rows_as_text
from hanse.running import reporting
from hanse.workers import address_of, gpu_share, workers

PREDICTIONS = "predictions.csv"  # of every row that was held out, by the members that never saw it
POLL_S = 0.25  # how often new records of the workers are looked for


@dataclass(frozen=True)
class Watch:
    """Who looks on: `show` gets each record, or with `in_sum` one line for all members; `stopping` is asked whether to
    end early."""

    show: Callable[[Record], None]
    stopping: Callable[[], bool]
    in_sum: bool = True


def train(run: TrainRun, repeat: Repeat, directory: RunDirectory, watch: Watch) -> Summary:
    """Trains the members that have not come to their end, on from where they were; if then all have, concludes.

    Raises what training raises, and WorkerError if every member diverged.
    """
    recipe, began = run.recipe, time.perf_counter()
    specs = members(recipe, repeat)
    first = override(recipe, specs[0].overrides)
    data = load(first.data, first.goal.target, first.seed)  # before workers start: what is wrong is said at once
    require_same_data(directory, data, recipe.data.path)
    note_data(directory, data, recipe.data.path, reporting(directory, watch.show))
    if not repeat.folds and not (data.sizes["test"] or data.sizes["validation"]):
        raise ConfigError("data.split: nothing is held out to judge the members by; raise data.split.test")
    there = summaries(directory)
    left = [spec for spec in specs if spec.name not in there]
    directory.event("repeat", members=len(specs), left=len(left))
    steps = reached(directory.checkpoints, [spec.name for spec in specs])
    directory.keep_metrics(lambda record: record.get("member") in there or _stays(record, steps))
    if left:
        on_the_way = {name: step for name, step in steps.items() if name not in there}
        numbers, show = first.over(data.sizes["train"]).train, _unnamed(watch.show)
        crowd = Crowd(len(specs), len(there), numbers.steps, numbers.log_every, show, on_the_way)
        _train(run, directory, specs, replace(watch, show=crowd) if watch.in_sum else watch)
        directory.keep_metrics(_first_times())  # a worker that died has said some of it before
    there = summaries(directory)
    ended = [there[spec.name] for spec in specs if spec.name in there]
    if len(ended) < len(specs):
        most = max((summary.get("steps", 0) for summary in ended), default=0)
        return {"ended": "stopped", "steps": most, "members": ended, "of": len(specs)}
    clear(directory.checkpoints)
    if count := sum(summary.get("still_improving", False) for summary in ended):
        said = f"{count} of {len(ended)} members were still improving at their last evaluation; {TRAIN_LONGER}"
        reporting(directory, watch.show)({"event": "note", "message": said})
    return {**conclude(repeat, directory, ended), "wall_s": time.perf_counter() - began}


def _stays(record: Record, steps: Mapping[str, int]) -> bool:
    """Whether a member that goes on from its step in `steps` will not say this again."""
    return bool(record.get("split") != "test" and record.get("step", 0) <= steps.get(str(record.get("member")), -1))


def _first_times() -> Callable[[Record], bool]:
    """Whether a member says something of a step for the first time."""
    seen = set[tuple[Any, ...]]()

    def is_first(record: Record) -> bool:
        key = tuple(record.get(name) for name in ("member", "step", "split"))
        is_new = key not in seen
        seen.add(key)
        return is_new or key[0] is None

    return is_first


def _unnamed(show: Callable[[Record], None]) -> Callable[[Record], None]:
    """The names of all members of a population are for who goes on with the run, not for a line on a screen."""
    return lambda record: show({key: value for key, value in record.items() if key != "names"})


def _train(run: TrainRun, directory: RunDirectory, specs: Sequence[MemberSpec], watch: Watch) -> None:
    if run.workers:
        assert isinstance(run.workers, int), "core.support refuses elastic workers"
        count = min(run.workers, len(specs))
        with workers(
            count,
            run.address,
            cpus_per_worker=run.cpus_per_worker,
            gpus_per_worker=_gpus(run, count),
            preload=("core.ensemble.train",),
            waiting=(watch.show, watch.stopping),
        ) as pool:
            if not watch.stopping():
                spread(pool, run, directory, specs, watch)
        return

    report = reporting(directory, watch.show)
    runtime = Runtime(choose_device(run.device), report=report, should_stop=watch.stopping)
    train_members(run, directory, specs, runtime)


def _gpus(run: TrainRun, workers: int) -> float:
    """A worker's share of the GPUs: those of this machine are shared out, of a cluster's each takes one if asked to."""
    if address_of(run.address):
        return 1.0 if run.device == "cuda" else 0.0
    return gpu_share(workers) if run.device != "cpu" else 0.0


def spread(pool: WorkerPool, run: TrainRun, directory: RunDirectory, specs: Sequence[MemberSpec], watch: Watch) -> None:
    """Shares members out to a pool, whose workers write into the run directory; it is followed from here."""
    stop, failures = StopRequest(directory.logs), list[BaseException]()
    stop.clear()
    follower = directory.follow()

    def work() -> None:
        try:
            for _ in pool.run(train_share, shares(run, directory, specs, pool.workers)):
                pass
        except BaseException as error:  # noqa: BLE001 - carried to the main thread, which raises it
            failures.append(error)

    thread = threading.Thread(target=work, daemon=True)  # the main one hears Ctrl-C
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        if watch.stopping():
            stop.ask()
        for record in follower.new():
            watch.show(record)
    for record in follower.new():
        watch.show(record)
    if failures:
        raise failures[0]


def shares(run: TrainRun, directory: RunDirectory, specs: Sequence[MemberSpec], workers: int) -> dict[str, Share]:
    """The members that have not ended in as many parts as there are workers, by their first name; neighbors, who share
    data, together. Those that were put together before stay so, also with those of them that have ended."""
    there, before = summaries(directory), chosen(directory.run.events())
    groups: dict[Any, list[MemberSpec]] = {}
    for spec in specs:
        known = before.get(spec.name)
        groups.setdefault(known if known and known.choice.backend == "vmap" else spec.name, []).append(spec)
    left = [group for group in groups.values() if any(spec.name not in there for spec in group)]
    size, parts = -(-sum(map(len, left)) // workers), list[list[MemberSpec]]()
    for group in left:
        if not parts or len(parts[-1]) >= size:
            parts.append([])
        parts[-1] += group
    return {part[0].name: Share.of(run, directory, part) for part in parts}


def conclude(repeat: Repeat, directory: RunDirectory, ended: Sequence[Summary]) -> Summary:
    """Makes one ensemble of the members that trained; its scores, and how much the members differ.

    Raises WorkerError if none trained.
    """
    good = [summary for summary in ended if "error" not in summary]
    if not good:
        raise WorkerError(f"repeat: all {len(ended)} members failed; {ended[0]['member']}: {ended[0]['error']}")
    artifact.save_ensemble(directory.model, [summary["member"] for summary in good])
    found, answers = inference.evaluate_each(artifact.load_all(directory.model))
    if answers:
        directory.replace(PREDICTIONS, rows_as_text(answers, ".csv"))
    fold_of = [summary["fold"] for summary in good] if repeat.folds else []
    spread = spread_of([summary["metrics"] for summary in good], repeat.folds, fold_of)
    ensemble: dict[str, Any] = {
        "split": found.split,
        "members": len(good),
        "examples": found.examples,
        "metrics": found.metrics,
        "uncertainty": found.uncertainty,
    }
    return {
        "ended": "done",
        "steps": max(summary["steps"] for summary in good),
        "parameters": good[0]["parameters"],
        "split": found.split,
        "metrics": {name: one.mean for name, one in spread.items()},
        "spread": {name: asdict(one) for name, one in spread.items()},
        "repeat": asdict(repeat),
        "ensemble": ensemble,
        "details": found.details,
        "members": list(ended),
    }
