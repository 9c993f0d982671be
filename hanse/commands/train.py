"""`hanse train FILE key=value ...`: one recipe, here or on Ray workers."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.config import dump_run, override, read_overrides, to_yaml
from core.errors import LostError
from core.optim import SGD
from core.recipe import TrainRun
from core.storage.store import runs_root
from hanse import launch
from hanse.console import Console, JsonConsole
from hanse.format import described, number, size
from hanse.interrupt import INTERRUPTED
from hanse.workers import place_of, ray_place

if TYPE_CHECKING:  # only names: training needs no estimate
    from core.data import Spec
    from core.estimate import Estimate


def run(file: str, words: Sequence[str], console: Console) -> int:
    """Trains, and says how it went and what to type next."""
    overrides = read_overrides(words)
    train = launch.parse_train(file, overrides)
    console.header(f"hanse train  {train.recipe.name}", _header(train))
    with resumable("hanse train", file, words):
        path, summary = launch.train(train, console)
    if summary["ended"] == "stopped":
        console.end(path, _shown(summary, console), [again("hanse train", file, words, path)])
        return INTERRUPTED
    console.close()  # the live table stands; what follows comes under it
    console.say(f"report  {path / 'report.html'}")
    console.end(path, _shown(summary, console), next_commands(path, train))
    return 0


def again(verb: str, file: str, words: Sequence[str], path: Path | None) -> str:
    """The command that goes on with a run, or begins it anew where that is none."""
    same = [shlex.quote(word) for word in words if not word.startswith(("resume=", "run_dir=", "init="))]
    return " ".join([f"{verb} {file}", *same, *([f"resume={reference(path)}"] if path else [])])


@contextmanager
def resumable(verb: str, file: str, words: Sequence[str]) -> Iterator[None]:
    """An error that is no fault of the run's own says how to go on with it."""
    try:
        yield
    except LostError as error:
        if error.run is None:
            raise
        raise LostError(f"{error}; go on with: {again(verb, file, words, error.run)}") from error


def dry_run(file: str, words: Sequence[str], console: Console) -> int:
    """The resolved config, the sizes of the data, and what a step costs; nothing is trained or written."""
    from core.data import load
    from core.ensemble.repeat import members

    train = launch.parse_train(file, read_overrides(words))
    recipe = train.recipe
    if train.repeat:
        recipe = override(recipe, members(recipe, train.repeat)[0].overrides)
    data = load(recipe.data, recipe.goal.target, recipe.seed)
    costs, workers = _costs(train, data.spec, data.sizes["train"]), _most(train)
    sharded = workers if train.strategy == "fsdp" else 1  # what each of them holds a part of only
    memory_bytes = (costs.memory_bytes - costs.activations_bytes) // sharded + costs.activations_bytes
    console.say(to_yaml(dump_run(train)))
    fields: dict[str, Any] = {
        **({"members": f"{train.repeat.members}, each:"} if train.repeat else {}),
        "parameters": number(costs.parameters),
        "trainable": number(costs.trainable),
        "FLOPs/step": f"{costs.flops:.3g}",
        "memory": f"at least {size(memory_bytes)}" + (f" on each of {workers} workers" if train.workers else ""),
        "data": data.summary,
        "input": f"{data.spec.kind} {list(data.spec.shape)} -> {data.spec.outputs}",
    }
    for note in data.notes:
        console.event("note", message=note)
    console.header("estimate", fields)
    numbers = {
        "parameters": costs.parameters,
        "trainable": costs.trainable,
        "flops_per_step": costs.flops,
        "memory_bytes": memory_bytes,
        "data": data.sizes,
        "notes": data.notes,
        "members": train.repeat.members if train.repeat else 1,
        "config": dump_run(train),
    }
    command = " ".join(["hanse train", file, *map(shlex.quote, words)])
    console.end(None, numbers if isinstance(console, JsonConsole) else {"dry run": "nothing was trained"}, [command])
    return 0


def _costs(train: TrainRun, spec: "Spec", examples: int) -> "Estimate":
    """FLOPs of a step of all workers; memory of the share that one of them has, as `core.data.shard` cuts it."""
    from core.data.shard import ceil_div
    from core.estimate import estimate, example_batch
    from core.learner import freeze

    recipe, numbers = train.recipe, train.recipe.train
    full = min(numbers.batch_size, examples)
    micro = ceil_div(ceil_div(full, max(_most(train), numbers.shards)), numbers.accumulate)
    task = recipe.outline(spec)
    freeze(task, recipe.freeze)
    return estimate(task, example_batch(spec, micro), recipe.optimizer, full, numbers.precision)


def _most(train: TrainRun) -> int:
    """How many share a step; of an elastic run the largest number, where each of them has the least to hold."""
    return max(1, train.workers if isinstance(train.workers, int) else train.workers.max)


def next_commands(path: Path, train: TrainRun) -> list[str]:
    """What a user would do with the trained model."""
    name = reference(path)
    use = f'generate {name} prompt="The "' if train.recipe.goal.target == "token" else f"evaluate {name}"
    return [f"hanse {use}", f"hanse runs show {name}"]


def reference(path: Path) -> str:
    """The shortest thing that names the run on the command line."""
    return path.name if path.parent == runs_root() else str(path)


def headline(summary: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that say at a glance how good a model is, the best-known first."""
    metrics = summary.get("metrics", {})
    names = ("accuracy", "r2", "perplexity", "bits_per_byte", "loss")
    return {name: metrics[name] for name in names if name in metrics}


def _shown(summary: Mapping[str, Any], console: Console) -> Mapping[str, Any]:
    """All of it for programs, the headline for people."""
    if isinstance(console, JsonConsole):
        return summary
    if "members" in summary:
        return shown_members(summary)
    if summary["ended"] == "stopped":
        return {"stopped after step": summary["steps"]}
    return {summary["split"]: headline(summary), "parameters": summary["parameters"], "wall_s": summary["wall_s"]}


def shown_members(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Of a repeat: the mean and standard deviation over members, and the ensemble's numbers."""
    ended = summary["members"]
    if summary["ended"] == "stopped":
        return {"members that have ended": f"{len(ended)} of {summary['of']}"}
    split, spread, ensemble = summary["split"], summary["spread"], summary["ensemble"]
    shown: dict[str, Any] = {"members": f"{ensemble['members']} of {len(ended)}"}
    for name in headline(summary):
        one = spread[name]
        said = number(one["mean"])
        if one["std"] is not None:
            low, high = number(one["low"]), number(one["high"])
            said += f" (std {number(one['std'])}, 95 %: {low} to {high})"
        shown[f"{split} {name}"] = said
    together = headline(ensemble)
    return {**shown, **{f"ensemble {name}": value for name, value in together.items()}, "wall_s": summary["wall_s"]}


def _header(train: TrainRun) -> dict[str, object]:
    recipe = train.recipe
    repeat = train.repeat and {
        "repeat": ", ".join(
            f"{count} {name}"
            for name in ("folds", "bootstraps", "seeds")
            if (count := getattr(train.repeat, name)) > (name == "seeds")
        )
    }
    return {
        "model": recipe.model.kind,
        "data": f"{recipe.data.kind} {recipe.data.path}",
        "optimizer": described(recipe.optimizer, SGD()),
        **({"epochs": recipe.train.epochs} if recipe.train.epochs else {"steps": number(recipe.train.steps)}),
        "batch": recipe.train.batch_size,
        "workers": _place(train) if train.workers else f"in this process, device {train.device}",
        "seed": recipe.seed,
        **(repeat or {}),
    }


def _place(train: TrainRun) -> str:
    if train.repeat and isinstance(train.workers, int):
        return place_of(train.workers, train.address)
    count = train.workers if isinstance(train.workers, int) else f"{train.workers.min} to {train.workers.max}"
    return f"{count} on Ray {ray_place(train.address)}"
