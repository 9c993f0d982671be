"""A Learner is what changes while training: weights, optimizer state, loss scale and progress, and how they are saved.

A checkpoint holds all of it and nothing else: batches, dropout and the learning rate are functions of the step.
"""

import fnmatch
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from core import optim
from core.data import Spec
from core.errors import ConfigError, DataError
from core.metrics import higher_is_better
from core.models.layers import Dropout
from core.precision import Precision
from core.recipe import Recipe
from core.runtime import LOCAL, Runtime
from core.sharding import is_sharded, sharded_like, whole
from core.storage.checkpoint import Restored, Snapshot
from core.task import Task


@dataclass
class Progress:
    """`step` counts finished steps; `best` is the best evaluation so far, `bad_evaluations` those since.

    `unmeasured` counts evaluations in which the deciding metric was not defined; `dropped_examples`, with privacy,
    examples whose gradient was not finite, which counted as zero.
    """

    step: int = 0
    best: float | None = None
    best_step: int | None = None
    bad_evaluations: int = 0
    unmeasured: int = 0
    dropped_examples: int = 0

    def judge(self, value: float, metric: str) -> bool:
        """Records an evaluation; whether it is the best so far. One that could not be measured (NaN) is no bad one."""
        if not math.isfinite(value):
            self.unmeasured += 1
            return False
        sign = 1 if higher_is_better(metric) else -1
        better = self.best is None or sign * value > sign * self.best
        self.bad_evaluations = 0 if better else self.bad_evaluations + 1
        if better:
            self.best, self.best_step = value, self.step
        return better


@dataclass(frozen=True)
class Pull:
    """What each step adds to the gradients: strength * (weights - anchor) + shift; one tensor a parameter, or absent.

    The gradient of a proximal term (arXiv 1812.06127), and a control variate (arXiv 1910.06378).
    """

    strength: float = 0.0
    anchor: list[Tensor] | None = None
    shift: list[Tensor] | None = None

    @torch.no_grad()
    def add(self, parameters: list[Any], gradients: list[Tensor]) -> None:
        """Adds it to the gradients of these parameters, in place."""
        if self.strength and self.anchor is not None:
            torch._foreach_add_(gradients, torch._foreach_sub(parameters, self.anchor), alpha=self.strength)
        if self.shift is not None:
            torch._foreach_add_(gradients, self.shift)


@dataclass
class Learner:
    """task: network and objective; model: the same as the runtime wraps it; trainable: the parameters that move."""

    task: Task
    model: nn.Module
    optimizer: torch.optim.Optimizer
    precision: Precision = field(default_factory=Precision)
    progress: Progress = field(default_factory=Progress)
    pull: Pull | None = None

    def __post_init__(self) -> None:
        self.trainable = [p for p in self.task.parameters() if p.requires_grad]
        self.is_noisy = any(isinstance(module, Dropout) and module.p > 0 for module in self.task.modules())


def start(recipe: Recipe, spec: Spec, weights: dict[str, Tensor] | None = None, runtime: Runtime = LOCAL) -> Learner:
    """A Learner at step 0, on the runtime's device, with `weights` loaded into it where they fit."""
    task = prepare(recipe, spec, weights, runtime).to(runtime.device).train()
    compiles = False if recipe.privacy else recipe.train.compile
    model = runtime.wrap(task, compiles, in_order=recipe.train.shards > 1)
    optimizer = recipe.optimizer.build(task.named_parameters())
    return Learner(task, model, optimizer, Precision.of(recipe.train.precision, runtime.device))


def prepare(recipe: Recipe, spec: Spec, weights: dict[str, Tensor] | None = None, runtime: Runtime = LOCAL) -> Task:
    """A Task on the CPU, as training begins with it: `weights` loaded where they fit, parameters frozen."""
    task = recipe.build(spec)
    if weights is not None:
        loaded = load_weights(task, weights)
        if runtime.rank == 0:
            runtime.report({"event": "initialized", **asdict(loaded)})
    freeze(task, recipe.freeze)
    return task


def freeze(task: Task, patterns: tuple[str, ...]) -> list[str]:
    """Stops the parameters that match from training; returns their names. ConfigError if a pattern matches none."""
    names = [name.removeprefix("network.") for name, _ in task.named_parameters()]
    frozen = []
    for pattern in patterns:
        hits = fnmatch.filter(names, pattern)
        if not hits:
            hint = f"did you mean '{pattern}.*'?" if fnmatch.filter(names, f"{pattern}.*") else "there are"
            raise ConfigError(f"freeze: '{pattern}' matches no parameter; {hint} {', '.join(names[:6])}, ...")
        frozen += hits
    for name in frozen:
        task.network.get_parameter(name).requires_grad_(False)
    if len(set(frozen)) == len(names):
        raise ConfigError("freeze: every parameter is frozen; nothing would train")
    return frozen


@dataclass(frozen=True)
class Loaded:
    """What `load_weights` took over: names loaded, names of the model left fresh, and names that found no place."""

    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        parts += [f"left fresh: {', '.join(self.fresh)}"] if self.fresh else []
        parts += [f"not used: {', '.join(self.unused)}"] if self.unused else []
        return "; ".join(parts)


def load_weights(task: Task, weights: dict[str, Tensor]) -> Loaded:
    """Copies the tensors whose name and shape fit the network. Raises ConfigError if none does."""
    own = task.network.state_dict()
    fitting = {name: t for name, t in weights.items() if name in own and own[name].shape == t.shape}
    if not fitting:
        raise ConfigError(
            "init: no tensor of these weights fits the model in name and shape; is it the same model.kind?"
        )
    task.network.load_state_dict(fitting, strict=False)
    fresh = tuple(name for name in own if name not in fitting)
    return Loaded(tuple(fitting), fresh, tuple(name for name in weights if name not in fitting))


# --- saved and restored --------------------------------------------------------------------------------------------


def capture(learner: Learner, runtime: Runtime = LOCAL) -> Snapshot:
    """All of a learner, on rank 0. Every rank must call it: with FSDP the shards are put together."""
    optimizer, scalars = optim.flatten(learner.optimizer, _named(learner))
    scaler = learner.precision.scaler
    state = {
        "progress": asdict(learner.progress),
        "optimizer": scalars,
        "scaler": scaler.state_dict() if scaler else None,
    }
    groups = {"model": learner.task.network.state_dict(), "optimizer": optimizer}
    return Snapshot(learner.progress.step, {name: gather(group, runtime) for name, group in groups.items()}, state)


def gather(tensors: dict[str, Tensor], runtime: Runtime = LOCAL) -> dict[str, Tensor]:
    """The tensors, whole, on rank 0; what was sharded comes to its CPU one by one. Every rank must call it."""
    gathered = {}
    for name, tensor in tensors.items():
        if not is_sharded(tensor):
            gathered[name] = tensor
            continue
        complete = whole(tensor)
        if runtime.rank == 0:
            gathered[name] = complete.cpu()
    return gathered


class Saver(Protocol):
    """Where `fit` saves what it captures, and what it goes on from: a `Checkpointer`, or memory."""

    def save(self, snapshot: Snapshot, best: bool = False) -> None:
        """Takes a snapshot whose tensors change after the call; `best` says that it is the best so far."""

    def wait(self) -> None:
        """Returns when all that was saved is kept. Raises what went wrong with it."""

    def load_latest(self) -> Restored:
        """The newest good snapshot, if there is one."""


def resume(learner: Learner, checkpoints: Saver | None, runtime: Runtime = LOCAL) -> None:
    """Goes on from the newest good checkpoint, bit for bit, or stays at step 0 where there is none.

    Rank 0 reads and tells the others. Raises DataError, on every rank, if there are checkpoints and none is whole.
    """
    restored, damaged = checkpoints.load_latest() if checkpoints else Restored(None, ()), ""
    for path, reason in restored.rejected:
        runtime.report({"event": "checkpoint_rejected", "checkpoint": path.name, "reason": reason})
        damaged = f"resume: no checkpoint is whole ({reason}); remove {path.parent} to train from the start"
    snapshot = share(restored.snapshot, runtime)
    if snapshot is None and runtime.any(bool(damaged)):
        raise DataError(damaged or "resume: no checkpoint is whole")
    if snapshot is None:
        return
    put_weights(learner.task, snapshot.tensors["model"])
    optim.restore(learner.optimizer, _named(learner), snapshot.tensors["optimizer"], snapshot.state["optimizer"])
    if learner.precision.scaler and snapshot.state["scaler"]:
        learner.precision.scaler.load_state_dict(snapshot.state["scaler"])
    for name, value in snapshot.state["progress"].items():
        setattr(learner.progress, name, value)


def put_weights(task: Task, weights: dict[str, Tensor]) -> None:
    """Gives the network exactly these weights, sharded the way it is. DataError if a name or shape does not fit."""
    own = task.network.state_dict()
    for name, target in own.items():
        if name not in weights or weights[name].shape != target.shape:
            raise DataError(f"checkpoint: {name} is missing or of another shape; it is of another model")
        target.copy_(sharded_like(weights[name], target))


def share(snapshot: Snapshot | None, runtime: Runtime) -> Snapshot | None:
    """Rank 0's snapshot on every rank."""
    if runtime.world == 1:
        return snapshot
    shapes = (
        {g: {n: (t.shape, t.dtype) for n, t in ts.items()} for g, ts in snapshot.tensors.items()} if snapshot else {}
    )
    header = [(snapshot.step, snapshot.state, shapes) if snapshot else None]
    dist.broadcast_object_list(header, src=0, device=runtime.device)
    if header[0] is None:
        return None
    step, state, shapes = header[0]
    tensors: dict[str, dict[str, Tensor]] = {}
    for group, members in shapes.items():
        tensors[group] = {}
        for name, (shape, dtype) in members.items():
            tensor = snapshot.tensors[group][name] if snapshot else torch.empty(shape, dtype=dtype)
            tensors[group][name] = runtime.from_rank_0(tensor.to(runtime.device)).cpu()
    return Snapshot(step, tensors, state)


def _named(learner: Learner) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in learner.task.named_parameters() if p.requires_grad]
