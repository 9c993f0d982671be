"""One training run in its run directory, on every rank: data, fit, the final evaluation, the model and the summary.

A local run and each Ray worker call `execute`; only rank 0 writes. Everything a reader needs later is in the directory.
"""

import hashlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from core.data import Data, load
from core.errors import DataError, out_of_memory
from core.estimate import require_memory
from core.learner import gather, put_weights, share
from core.recipe import Recipe, TrainRun
from core.runtime import LOCAL, Record, Runtime
from core.storage import artifact
from core.storage.checkpoint import Checkpointer, load_best
from core.storage.steps import steps
from core.storage.store import RunDirectory
from core.train import Result, evaluate, fit, metrics_of

Summary = dict[str, Any]
TRAIN_LONGER = "train longer, with train.epochs=N or train.steps=N"


def execute(run: TrainRun, directory: RunDirectory, runtime: Runtime) -> Summary:
    """Trains, evaluates and saves; returns the summary (on every rank). A run that was stopped saves no model.

    Raises DataError if the data is not what it was when the run began, ResourceError if memory does not suffice.
    """
    recipe, began = run.recipe, time.perf_counter()
    data = load(recipe.data, recipe.goal.target, recipe.seed)
    recipe = recipe.over(data.sizes["train"])
    require_same_data(directory, data, recipe.data.path, runtime)
    if runtime.rank == 0:
        note_data(directory, data, recipe.data.path, runtime.report)
    require_memory(recipe, data.spec)
    with out_of_memory(), _checkpointer(run, directory, runtime) as checkpoints:
        begins = not runtime.any(checkpoints is not None and bool(steps(directory.checkpoints)))
        weights = artifact.read_weights(run.init) if run.init and begins else None
        result = fit(recipe, data.shard(runtime.rank, runtime.world), weights, runtime, checkpoints)
        if checkpoints:
            checkpoints.wait()
        # none is the best where the metric is never defined, as r2 of a single row: then the last weights stay
        if result.ended != "stopped" and recipe.train.keep == "best" and result.progress.best is not None:
            best = load_best(directory.checkpoints, ["model"]) if checkpoints else None
            shared = share(best, runtime)
            assert shared is not None, "rank 0 has it"
            put_weights(result.task, shared.tensors["model"])
    summary: Summary = {"ended": result.ended, "steps": result.progress.step, "wall_s": time.perf_counter() - began}
    if result.ended == "stopped":
        return summary
    summary |= score(recipe, data, result, runtime)
    if runtime.rank == 0 and is_still_improving(result, recipe):
        metric = f"{recipe.train.metric} was best at the last evaluation"
        runtime.report({"event": "note", "message": f"{metric}: the model was still improving; {TRAIN_LONGER}"})
    final = gather(result.task.network.state_dict(), runtime)
    summary |= {"parameters": sum(t.numel() for t in result.task.parameters()), "weights_sha256": digest(final)}
    if runtime.rank == 0:
        artifact.save(directory.model, recipe, data.spec, data.preprocess, final, fingerprint=data.fingerprint)
        directory.summary(summary)
    return summary


def _checkpointer(
    run: TrainRun, directory: RunDirectory, runtime: Runtime
) -> AbstractContextManager[Checkpointer | None]:
    """Rank 0's; the others have none."""
    if runtime.rank != 0:
        return nullcontext()
    return Checkpointer(directory.checkpoints, keep_last=run.recipe.train.keep_last)


def require_same_data(directory: RunDirectory, data: Data, path: str, runtime: Runtime = LOCAL) -> None:
    """Raises DataError, on all ranks, if this is not the data that the run noted when it began."""
    noted = (directory.run.record.get("data") or {}) if runtime.rank == 0 else {}
    if runtime.any(noted.get("sha256", data.fingerprint) != data.fingerprint):
        raise DataError(f"data.path: {path} is not what it was when this run began; start a new run with init=")


def note_data(directory: RunDirectory, data: Data, path: str, report: Callable[[Record], None]) -> None:
    """Writes into run.json what the run trains on, and reports it: what was read, and the notes of its reading."""
    directory.update(data={"path": path, "sha256": data.fingerprint, "sizes": data.sizes})
    report({"event": "data", "message": data.summary})
    for note in data.notes:
        report({"event": "note", "message": note})


def score(recipe: Recipe, data: Data, result: Result, runtime: Runtime) -> Summary:
    """The metrics on the held-out split that training never saw: test, or validation where there is no test."""
    split = next((name for name in ("test", "validation") if data.sizes[name]), None)
    if split is None:
        return {"split": None, "metrics": {}, "details": {}}
    shard = data.shard(runtime.rank, runtime.world)
    metrics = metrics_of(recipe, shard)
    batches = shard.held_out(split, recipe.train.evaluate_batch, recipe.train.shards)
    state = evaluate(result.task, batches, metrics, runtime, shards=recipe.train.shards)
    values, progress = metrics.compute(state), result.progress
    if runtime.rank == 0:
        runtime.report({"step": progress.step, "split": split, **values})
    best = {
        "step": progress.best_step,
        "metric": recipe.train.metric,
        "value": progress.best,
        "bad_evaluations": progress.bad_evaluations,
    }
    return {"split": split, "metrics": values, "details": metrics.details(state), "best": best}


def is_still_improving(result: Result, recipe: Recipe) -> bool:
    """Whether the training ended with its last evaluation as the best of several: more steps may make it better."""
    every, step = recipe.train.evaluation_interval, result.progress.step
    return result.ended == "done" and result.progress.best_step == step and 0 < every < step


def digest(weights: dict[str, Tensor]) -> str:
    """SHA-256 over names and bytes of the tensors: two runs with the same digest have the same weights, bit for bit."""
    total = hashlib.sha256()
    for name in sorted(weights):
        total.update(name.encode())
        total.update(weights[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
