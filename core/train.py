"""The one supervised loop and the one step: a laptop, a Ray worker, a search trial, a federated client all run `fit`.

The loss of a step is sum(losses) / sum(weights) over the global batch, that is over all ranks and micro-batches, so
how a batch is split changes nothing. A step is a pure function of weights, optimizer state and its number, so resuming
is exact.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from core import health
from core.data import Shard, Spec
from core.errors import ConfigError, HanseError
from core.estimate import example_batch
from core.learner import Learner, Progress, Saver, capture, resume, start
from core.meter import Meter, StopWatch
from core.metrics import Metrics, State
from core.optim import set_lr
from core.ordered import pairwise
from core.precision import FULL, Precision
from core.privacy.gradient import noise_like, private_gradient
from core.recipe import Recipe, Training, has_batch_norm
from core.runtime import LOCAL, Record, Runtime
from core.sharding import whole
from core.task import Batch, Task, cut, split

Ended = Literal["done", "early", "stopped"]


@dataclass(frozen=True)
class Result:
    """The trained task (its last weights) and how the loop ended: done, early (patience) or stopped (asked to).

    loss: the mean of the steps made here, on one rank; None if there were none.
    """

    task: Task
    progress: Progress
    ended: Ended
    seconds: float = field(compare=False)
    loss: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Step:
    """loss: of the global batch if measured or in shards, else this rank's share of it; norm: of the gradient, before
    clipping."""

    loss: Tensor
    norm: Tensor | None


def fit(
    recipe: Recipe,
    shard: Shard,
    weights: dict[str, Tensor] | None = None,
    runtime: Runtime = LOCAL,
    checkpoints: Saver | None = None,
    learner: Learner | None = None,
) -> Result:
    """Trains on this rank's shard, from `weights` (or fresh ones), or on from the newest checkpoint if there is one.

    Only rank 0 is given `checkpoints`. `learner`: one at step 0 that is already there, in place of a new one with
    `weights`. Raises WorkerError when loss or weights stop being finite; no checkpoint holds such a state.
    """
    began = time.perf_counter()
    recipe = recipe.over(shard.sizes["train"])
    train = recipe.train
    judges = require_validation(shard, train)
    require_batches(recipe, shard.spec, shard.rows(train))
    learner = learner or start(recipe, shard.spec, weights, runtime)
    progress = learner.progress
    saves = runtime.any(checkpoints is not None)
    if saves:
        resume(learner, checkpoints, runtime)
    if runtime.rank == 0:
        runtime.report({"event": "started", "step": progress.step})
    meter, asked = Meter(recipe, shard.spec, runtime, progress.step), StopWatch(runtime)
    ended, summed, first = how_ended(progress, train), torch.zeros(()), progress.step
    for step, batch in shard.batches(train, progress.step, noise=learner.is_noisy):
        if ended:
            break
        log = runtime.listens and (step == 0 or due(step + 1, train.log_every, train.steps))
        outcome = train_step(learner, _move(batch, runtime.device), recipe, runtime, measure=log)
        summed = summed + outcome.loss
        if log:
            meter.report(outcome.loss, outcome.norm, learner)
        with meter.paused():
            evaluates = judges and due(progress.step, train.evaluation_interval, train.steps)
            best = evaluates and _judge(learner, shard, recipe, runtime)
            ended = how_ended(progress, train) or ("stopped" if asked(progress.step) else None)
            if saves and (best or ended or due(progress.step, train.checkpoint_every, train.steps)):
                health.require_finite_weights(learner, runtime)
                snapshot = capture(learner, runtime)
                if checkpoints:
                    checkpoints.save(snapshot, best=best)
    loss = summed.item() / (progress.step - first) if progress.step > first else None
    return Result(learner.task, progress, ended or "done", time.perf_counter() - began, loss)


def train_step(learner: Learner, batch: Batch, recipe: Recipe, runtime: Runtime = LOCAL, measure: bool = False) -> Step:
    """One optimizer step on this rank's rows of the global batch.

    `measure` makes the loss global and takes the gradient's norm. The weights do not move if the loss or, where it is
    taken, the norm is not finite: that raises WorkerError, on all ranks alike.
    """
    train, precision, optimizer = recipe.train, learner.precision, learner.optimizer
    set_lr(optimizer, recipe.schedule.factor(learner.progress.step, train.steps))
    for parameter in learner.trainable:
        parameter.grad = None
    parts = train.micro_batches(runtime.world)
    if recipe.privacy:
        loss = _private(learner, split(batch, parts), recipe, runtime)
    elif train.shards > 1:
        loss = _in_order(learner, cut(batch, train.shards // runtime.world), recipe, runtime)
    else:
        loss = _backward(learner, split(batch, parts), recipe, runtime)
    if learner.pull:
        assert precision.scaler is None, "core.support refuses fp16 in a federation"
        learner.pull.add(learner.trainable, [p.grad for p in learner.trainable if p.grad is not None])
    if measure and train.shards == 1:
        loss = runtime.total(loss.clone()) / runtime.world
    norm = _clip(learner, train.clip, measure)
    if measure or runtime.is_alone_on_cpu:  # elsewhere looking at every loss would stall the device
        health.require_finite(learner, batch, loss, norm, parts)
    precision.step(optimizer)
    learner.progress.step += 1
    return Step(loss, norm)


def _backward(learner: Learner, micros: list[Batch], recipe: Recipe, runtime: Runtime) -> Tensor:
    """Leaves the gradient of the global batch's weighted mean loss; returns this rank's share of that."""
    total = None
    if len(micros) > 1 or runtime.world > 1:
        total = nonzero(runtime.total(_weight(micros, recipe))) / runtime.world  # of which the mean over ranks is taken
    shares = []
    for i, micro in enumerate(micros):
        with runtime.synchronize(learner.model, i + 1 == len(micros)):
            shares.append(_add_gradient(learner, micro, total))
    return shares[0] if len(shares) == 1 else torch.stack(shares).sum()


def _add_gradient(learner: Learner, micro: Batch, total: Tensor | None) -> Tensor:
    """Adds a micro-batch's part of the gradient to what is there; returns its part of the loss. Null: it is all."""
    with learner.precision.autocast():
        losses, weights = learner.model(micro)
    whole_weight = nonzero(torch.dot(weights, micro["weight"])) if total is None else total
    share = torch.dot(losses, micro["weight"]) / whole_weight
    learner.precision.scale(share).backward()
    return share.detach()


def _in_order(learner: Learner, shards: list[Batch], recipe: Recipe, runtime: Runtime) -> Tensor:
    """Leaves the same, summed over all ranks' shards in one order, whoever has which; returns the batch's loss."""
    micros = [split(shard, recipe.train.accumulate) for shard in shards]
    weight = pairwise((_weight(shard, recipe) for shard in micros), len(micros))
    total = nonzero(runtime.total_in_order(weight))
    own = pairwise((_loss_and_gradient(learner, shard, total) for shard in micros), len(micros))
    summed = runtime.total_in_order(own)
    moving = [p for p in learner.trainable if p.grad is not None]
    loss, *gradients = torch.split(summed, [1, *(p.numel() for p in moving)])
    for parameter, gradient in zip(moving, gradients, strict=True):
        parameter.grad = gradient.view_as(parameter)
    return loss.squeeze()


def _loss_and_gradient(learner: Learner, micros: list[Batch], total: Tensor) -> Tensor:
    """One shard's part of the loss and of the gradient, one after the other [1 + P]."""
    for parameter in learner.trainable:
        parameter.grad = None
    loss = torch.zeros((), device=total.device)
    for micro in micros:
        loss = loss + _add_gradient(learner, micro, total)
    return torch.cat([loss.view(1), *(p.grad.flatten() for p in learner.trainable if p.grad is not None)])


def _private(learner: Learner, micros: list[Batch], recipe: Recipe, runtime: Runtime) -> Tensor:
    """Leaves the gradient of DP-SGD; returns the mean loss of the examples, which is not private."""
    privacy, size = recipe.privacy, recipe.train.batch_size
    assert privacy is not None
    assert runtime.world == 1 and learner.precision.scaler is None, "core.support refuses the rest"
    named = [(name, p) for name, p in learner.task.named_parameters() if p.requires_grad]
    with learner.precision.autocast():
        sums, losses, dropped = private_gradient(learner.task, named, micros, privacy.clip)
    learner.progress.dropped_examples += int(dropped.sum())
    for name, parameter in named:
        noise = noise_like(parameter, privacy, recipe.seed, learner.progress.step, name)
        parameter.grad = (sums[name] + noise.detach()) / size
    return losses.sum() / size


def _weight(micros: list[Batch], recipe: Recipe) -> Tensor:
    """What all examples of these weigh together."""
    return torch.stack([torch.dot(recipe.goal.weights(micro), micro["weight"]) for micro in micros]).sum()


def nonzero(weight: Tensor) -> Tensor:
    """A batch of weight 0 has loss 0 and moves nothing."""
    return weight.clamp(min=torch.finfo(weight.dtype).tiny)


def _clip(learner: Learner, clip: float | None, measure: bool) -> Tensor | None:
    if clip is None and not measure:
        return None
    learner.precision.unscale(learner.optimizer)
    gradients = [p.grad for p in learner.trainable if p.grad is not None]
    norm = whole(nn.utils.get_total_norm(gradients))
    if clip is not None:
        nn.utils.clip_grads_with_norm_(learner.trainable, clip, norm)
    return norm


@torch.no_grad()
def evaluate(
    task: Task,
    batches: Iterable[Batch],
    metrics: Metrics,
    runtime: Runtime = LOCAL,
    precision: Precision = FULL,
    shards: int = 1,
) -> State:
    """The metric state over all ranks' held-out batches; `metrics.compute(state)` reads it.

    `shards` of each batch, all ranks together, are looked at by themselves and added up in one order.
    """
    was_training = task.training
    task.eval()
    states = [metrics.zero(runtime.device) for _ in range(max(1, shards // runtime.world))]
    for batch in batches:
        moved = _move(batch, runtime.device)
        for state, part in zip(states, cut(moved, len(states)) if shards > 1 else [moved], strict=True):
            with precision.autocast():
                losses, weights, outputs = task(part, outputs=True)
            metrics.add(state, outputs, part, losses, weights)
    task.train(was_training)
    return runtime.merge(states, in_order=shards > 1)


def metrics_of(recipe: Recipe, shard: Shard) -> Metrics:
    """What is measured on held-out data for this recipe's objective."""
    goal, spec = recipe.goal, shard.spec
    smoothed = getattr(goal, "label_smoothing", 0.0) > 0
    return Metrics.of(goal.target, spec.outputs, spec.classes, shard.bytes_per_token, smoothed, shard.unit)


def due(step: int, every: int, steps: int) -> bool:
    """Whether something happens after `step` finished steps or rounds: every so many (0: never), and after the last."""
    return step == steps or (every > 0 and step % every == 0)


def _move(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def validate(task: Task, shard: Shard, recipe: Recipe, runtime: Runtime, precision: Precision) -> dict[str, float]:
    """The metrics on the validation split."""
    metrics, shards = metrics_of(recipe, shard), recipe.train.shards
    batches = shard.held_out("validation", recipe.train.evaluate_batch, shards)
    return metrics.compute(evaluate(task, batches, metrics, runtime, precision, shards))


def _judge(learner: Learner, shard: Shard, recipe: Recipe, runtime: Runtime) -> bool:
    """Evaluates on the validation split and reports it; whether it is the best so far."""
    values = validate(learner.task, shard, recipe, runtime, learner.precision)
    report = runtime.report if runtime.rank == 0 else lambda record: None
    return judge(learner.progress, values, recipe.train, report)


def judge(progress: Progress, values: dict[str, float], train: Training, report: Callable[[Record], None]) -> bool:
    """Reports and records an evaluation on the validation split; whether it is the best so far.

    A metric that decides and cannot be measured is reported once, with the reason.
    """
    report({"step": progress.step, "split": "validation", **values})
    better = progress.judge(values.get(train.metric, math.nan), train.metric)
    if progress.unmeasured == 1 and (train.patience is not None or train.keep == "best"):
        report({"event": "note", "message": f"train.metric: {_why_unmeasured(values, train.metric)}"})
    return better


def _why_unmeasured(values: dict[str, float], metric: str) -> str:
    if not values:
        reason = "all examples of the validation split weigh 0"
    elif metric in values:
        reason = f"it is {values[metric]}"
    else:
        reason = "all targets of the validation split are equal, or it has too few examples"
    return f"{metric} could not be measured: {reason}; patience and keep pass such evaluations over"


def require_validation(shard: Shard, train: Training) -> bool:
    """Whether there is a validation split. ConfigError if there is none and the recipe decides by it."""
    if shard.sizes["validation"]:
        return True
    if train.patience is not None or train.keep == "best":
        raise ConfigError("data.split.validation: is empty, and train.patience or train.keep decides by it; raise it")
    return False


def require_batches(recipe: Recipe, spec: Spec, rows: int, who: str = "train.batch_size") -> None:
    """ConfigError if batches of so few rows have no batch statistics: one row with one value for each channel."""
    if rows > 1 or not has_batch_norm(recipe):
        return
    try:
        recipe.outline(spec).train()(example_batch(spec, rows))
    except HanseError:
        raise
    except ValueError as error:
        raise ConfigError(
            f"{who}: a batch of one row has no batch statistics where each channel has one value; use "
            "model.norm=group, or larger batches"
        ) from error


def how_ended(progress: Progress, train: Training) -> Ended | None:
    """Whether training is over: all steps done, or no patience left."""
    if progress.step >= train.steps:
        return "done"
    return "early" if train.patience is not None and progress.bad_evaluations >= train.patience else None
