"""The members of a repeat, trained by whoever takes a share of them: this process, or a worker of a pool.

Each member leaves a model directory `model/NAME` and then its summary `members/NAME.json`, the last thing written: a
member that has one has ended, whatever kills the run. Until then `checkpoints/` holds what it goes on from.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.config import dump_run, override, parse_run
from core.data import Data, load
from core.ensemble.repeat import MemberSpec
from core.errors import DataError, ResourceError, out_of_memory
from core.estimate import require_memory
from core.execute import Summary, digest, is_still_improving, require_same_data, score
from core.population import Member, Outcome, fit_all
from core.population.executor import chosen
from core.population.memory import free_memory
from core.population.places import Places
from core.recipe import Recipe, TrainRun
from core.runtime import Record, Runtime, choose_device
from core.storage import artifact
from core.storage.atomic import TEMPORARY, replace_text, sync_directory
from core.storage.read import read_json
from core.storage.stop import StopRequest
from core.storage.store import RunDirectory, is_run


@dataclass(frozen=True)
class Share:
    """Some members of a run, for one worker: plain values only.

    `run` is the run's mapping and `directory` its path, both with paths that mean the same everywhere; `data_path` is
    the data's as the user wrote it, for the models.
    """

    run: Mapping[str, Any]
    directory: str
    data_path: str
    members: tuple[MemberSpec, ...]

    @classmethod
    def of(cls, run: TrainRun, directory: RunDirectory, members: Sequence[MemberSpec]) -> "Share":
        """The share of a worker that takes these members."""
        path = str(directory.path.resolve())
        return cls(dump_run(run.absolute()), path, run.recipe.data.path, tuple(members))


def train_share(share: Share) -> None:
    """A pool worker's part: trains what is not yet trained of a share, and writes it into the run directory.

    Raises ResourceError if the worker does not see that directory, and what training itself raises.
    """
    path = Path(share.directory)
    if not is_run(path):
        raise ResourceError(f"run_dir: {path} is not visible on every worker's machine; put it on storage they share")
    run = parse_run(TrainRun, share.run)
    directory = RunDirectory.join(path)
    with contextlib.closing(directory):
        runtime = Runtime(choose_device(run.device), report=directory.record, should_stop=StopRequest(directory.logs))
        train_members(run, directory, share.members, runtime, share.data_path)


def train_members(
    run: TrainRun, directory: RunDirectory, specs: Sequence[MemberSpec], runtime: Runtime, data_path: str | None = None
) -> None:
    """Trains these members of the run, except those that have a summary, on from what they have left in `checkpoints`.

    `specs`: with all that trained together before, also those that have ended. `data_path`: see `Share`.
    """
    there = summaries(directory)
    places = Places(directory.checkpoints, there, chosen(directory.run.events()))
    for record in places.read([spec.name for spec in specs]):
        runtime.report(record)
    needed = {spec.name for spec in specs if spec.name not in there} | places.rows
    recipes = {spec.name: override(run.recipe, spec.overrides) for spec in specs if spec.name in needed}
    if not recipes:
        return
    sources = _Sources(directory)
    data = {name: sources.of(recipe) for name, recipe in recipes.items()}
    recipes = {name: recipe.over(data[name].sizes["train"]) for name, recipe in recipes.items()}
    first = next(iter(recipes))
    require_memory(recipes[first], data[first].spec)
    weights = artifact.read_weights(run.init) if run.init else None
    group = [Member(name, recipe, data[name].shard(), weights) for name, recipe in recipes.items()]
    by_name = {spec.name: spec for spec in specs}
    training = replace(runtime, report=_of_members(runtime.report, there))

    def finished(outcome: Outcome) -> None:
        name = outcome.name
        if outcome.ended != "stopped":
            recipe = override(recipes[name], {"data.path": data_path}) if data_path else recipes[name]
            _save(by_name[name], recipe, data[name], outcome, directory, runtime)

    # the other workers of a pool may be on this machine, and plan with the same memory
    workers = run.workers if isinstance(run.workers, int) else 1
    free = free_memory(runtime.device) // max(1, workers)
    with out_of_memory():
        fit_all(group, run.repeat.backend if run.repeat else "auto", training, free, finished, places)


def summaries(directory: RunDirectory) -> dict[str, Summary]:
    """The summaries of the members that have come to their end, by name. Raises DataError if one is damaged."""
    found = {}
    for file in sorted((directory.path / "members").glob("*.json")):
        try:
            found[file.stem] = read_json(file)
        except DataError as error:
            raise DataError(f"{error}; remove it to train this member again") from None
    return found


class _Sources:
    """The data of each member; members that differ in their seed alone share one."""

    def __init__(self, directory: RunDirectory) -> None:
        self.directory = directory
        self.loaded: dict[Any, Data] = {}

    def of(self, recipe: Recipe) -> Data:
        key = (recipe.data, recipe.goal.target)
        if key not in self.loaded:
            self.loaded[key] = load(recipe.data, recipe.goal.target, recipe.seed)
            require_same_data(self.directory, self.loaded[key], recipe.data.path)
        return replace(self.loaded[key], seed=recipe.seed)


def _of_members(report: Callable[[Record], None], ended: Collection[str]) -> Callable[[Record], None]:
    """What members report. One that starts must not drop the records of the others, as a run that is resumed drops its
    own; one that has ended, and moves on for others, has said it all before."""

    def passed_on(record: Record) -> None:
        if record.get("member") in ended:
            return
        if record.get("event") != "started":
            report(record)
        elif record["step"]:
            report({**record, "event": "resumed"})

    return passed_on


def _save(
    spec: MemberSpec, recipe: Recipe, data: Data, outcome: Outcome, directory: RunDirectory, runtime: Runtime
) -> None:
    said: Summary = {"member": spec.name, "seed": spec.seed, "fold": spec.fold, "bootstrap": spec.bootstrap}
    said = {key: value for key, value in said.items() if value is not None}
    if outcome.error is not None:
        said["error"] = str(outcome.error)
    else:
        result = outcome.require()
        own = replace(runtime, report=lambda record: runtime.report({"member": spec.name, **record}))
        scored = score(recipe, data, result, own)
        weights = result.task.network.state_dict()
        parameters = sum(p.numel() for p in result.task.parameters())
        said |= {"ended": result.ended, "steps": result.progress.step, "split": scored["split"]}
        said["still_improving"] = is_still_improving(result, recipe)
        said |= {"metrics": scored["metrics"], "parameters": parameters, "weights_sha256": digest(weights)}
        final, temporary = directory.model / spec.name, directory.model / f"{TEMPORARY}{spec.name}"
        for left in (temporary, final):  # of a worker that was killed
            shutil.rmtree(left, ignore_errors=True)
        artifact.save(temporary, recipe, data.spec, data.preprocess, weights, fingerprint=data.fingerprint)
        temporary.rename(final)
        sync_directory(directory.model)
    folder = directory.path / "members"
    folder.mkdir(exist_ok=True)
    replace_text(folder / f"{spec.name}.json", json.dumps(said, indent=2) + "\n")
    if outcome.error is None:
        runtime.report({"event": "member_done", "member": spec.name, "split": said["split"], **said["metrics"]})
