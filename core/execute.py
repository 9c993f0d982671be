"""One training run in its run directory, on every rank: data, fit, the final evaluation, the model and the summary.

A local run and each Ray worker call `execute`; only rank 0 writes. Everything a reader needs later is in the directory.
"""

import hashlib
import time
from contextlib import closing, nullcontext
from typing import Any

import torch
from torch import Tensor

from core.data import Data, load
from core.learner import put_weights, share, whole_weights
from core.recipe import TrainRun
from core.runtime import Runtime
from core.storage import artifact
from core.storage.checkpoint import Checkpointer, load_best
from core.storage.store import RunDirectory
from core.train import Result, evaluate, fit, metrics_of

Summary = dict[str, Any]


def execute(run: TrainRun, directory: RunDirectory, runtime: Runtime) -> Summary:
    """Trains, evaluates and saves; returns the summary (on every rank). A run that was stopped saves no model."""
    recipe, began = run.recipe, time.perf_counter()
    data = load(recipe.data, recipe.goal.target, recipe.seed)
    weights = artifact.read_weights(run.init) if run.init else None
    if runtime.rank == 0:
        directory.update(data={"path": recipe.data.path, "sha256": data.fingerprint, "sizes": data.sizes})
        checkpointer = Checkpointer(directory.checkpoints, keep_last=recipe.train.keep_last)
    with closing(checkpointer) if runtime.rank == 0 else nullcontext() as checkpoints:
        result = fit(recipe, data.shard(runtime.rank, runtime.world), weights, runtime, checkpoints)
        if checkpoints:
            checkpoints.wait()
        if result.ended != "stopped" and recipe.train.keep == "best":
            best = load_best(directory.checkpoints, ["model"]) if checkpoints else None
            shared = share(best, runtime)
            assert shared is not None, "an evaluation is always the best so far or after one"
            put_weights(result.task, shared.tensors["model"])
    summary: Summary = {"ended": result.ended, "steps": result.progress.step, "wall_s": time.perf_counter() - began}
    if result.ended == "stopped":
        return summary
    summary |= _score(run, data, result, runtime)
    final = whole_weights(result.task)
    summary |= {"parameters": sum(t.numel() for t in result.task.parameters()), "weights_sha256": digest(final)}
    if runtime.rank == 0:
        artifact.save(directory.model, recipe, data.spec, data.preprocess, final)
        directory.summary(summary)
    return summary


def _score(run: TrainRun, data: Data, result: Result, runtime: Runtime) -> Summary:
    """The metrics on the held-out split that training never saw: test, or validation where there is no test."""
    split = "test" if data.sizes.get("test") else "validation"
    shard = data.shard(runtime.rank, runtime.world)
    metrics = metrics_of(run.recipe, shard)
    state = evaluate(result.task, shard.held_out(split, run.recipe.train.evaluate_batch), metrics, runtime)
    values, progress = metrics.compute(state), result.progress
    if runtime.rank == 0:
        runtime.report({"step": progress.step, "split": split, **values})
    best = {"step": progress.best_step, "metric": run.recipe.train.metric, "value": progress.best}
    return {"split": split, "metrics": values, "details": metrics.details(state), "best": best}


def digest(weights: dict[str, Tensor]) -> str:
    """SHA-256 over names and bytes of the tensors: two runs with the same digest have the same weights, bit for bit."""
    total = hashlib.sha256()
    for name in sorted(weights):
        total.update(name.encode())
        total.update(weights[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
