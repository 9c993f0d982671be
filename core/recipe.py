"""A recipe says what to learn; a run says where and how, and holds a recipe. Containment, never inheritance."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from core.data import DataConfig, Spec, Text
from core.ensemble.repeat import Repeat
from core.errors import ConfigError, out_of_memory
from core.metrics import NAMES
from core.models import ModelConfig
from core.models.layers import Dropout
from core.objectives import Classification, Language, ObjectiveConfig
from core.optim import AdamW, Constant, OptimizerConfig, ScheduleConfig
from core.privacy import ExamplePrivacy
from core.randomness import seed_of
from core.storage.path import user_path
from core.task import Task


@dataclass(frozen=True)
class Training:
    """The numbers of training. Counts are optimizer steps; `batch_size` is the global batch over all workers.

    `epochs`, where set, replaces `steps`: so many passes over the training split. `evaluate_every: epoch` evaluates
    after each pass. `over` turns both into steps.
    `accumulate` micro-batches make one step with the same result as one large batch. Gradients are added up over
    `shards` of the batch, a power of two, in one fixed order: any number of workers that divides it gives the same
    weights to the last bit, on CPUs of one kind. `clip` bounds the global gradient norm. `patience` stops after that
    many evaluations without a better `metric`; `keep` says which weights become the model. 0 for an `..._every` means:
    only at the end.
    """

    steps: int = 600
    epochs: int | None = None
    batch_size: int = 64
    accumulate: int = 1
    shards: int = 1
    clip: float | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool | Literal["auto"] = "auto"
    log_every: int = 10
    evaluate_every: int | Literal["epoch"] = 0
    evaluate_batch: int = 256
    checkpoint_every: int = 100
    keep_last: int = 2
    metric: str = "loss"
    patience: int | None = None
    keep: Literal["last", "best"] = "last"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "shards", "log_every", "evaluate_batch", "keep_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}; null trains for train.steps")
        for name in ("evaluate_every", "checkpoint_every"):
            if getattr(self, name) != "epoch" and getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 (only at the end) or more, got {getattr(self, name)}")
        if self.shards & (self.shards - 1):
            raise ValueError(f"shards must be a power of two, got {self.shards}")
        if (least := self.micro_batches(1)) > self.batch_size:
            what = "shards times accumulate" if self.shards > 1 else "accumulate"
            raise ValueError(f"{what} must not exceed batch_size ({self.batch_size}), got {least}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be above 0, got {self.clip}; null turns clipping off")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be at least 1, got {self.patience}; null turns early stopping off")
        if (self.patience is not None or self.keep == "best") and not self.evaluate_every:
            raise ValueError("evaluate_every must be set when patience or keep: best is")

    def over(self, examples: int) -> "Training":
        """The same numbers in steps, for a training split of `examples` examples."""
        epoch = -(-examples // self.batch_size)
        steps = self.steps if self.epochs is None else self.epochs * epoch
        every = epoch if self.evaluate_every == "epoch" else self.evaluate_every
        return replace(self, steps=steps, evaluate_every=every)

    @property
    def evaluation_interval(self) -> int:
        """`evaluate_every` in steps, of what `over` returns."""
        assert self.evaluate_every != "epoch", "the size of the data decides: ask what Training.over returns"
        return self.evaluate_every

    def micro_batches(self, world: int) -> int:
        """How many of them each of `world` workers makes in a step."""
        return self.accumulate * max(1, self.shards // world)


@dataclass(frozen=True)
class Recipe:
    """What to learn: data, model, objective, optimizer and the training numbers. `seed` addresses every random draw.

    `objective` null follows the data: language for text, else classification. `freeze` holds patterns of parameter
    names that do not train, such as `blocks.0.*`. `privacy` bounds what each example can do to the model.
    """

    data: DataConfig
    model: ModelConfig
    name: str = "run"
    seed: int = 0
    objective: ObjectiveConfig | None = None
    optimizer: OptimizerConfig = field(default_factory=AdamW)
    schedule: ScheduleConfig = field(default_factory=Constant)
    train: Training = field(default_factory=Training)
    freeze: tuple[str, ...] = ()
    privacy: ExamplePrivacy | None = None

    def __post_init__(self) -> None:
        wanted = ("token",) if isinstance(self.data, Text) else ("class", "real")
        if self.goal.target not in wanted:
            raise ConfigError(f"objective.kind: {self.goal.kind} does not go with data.kind: {self.data.kind}")
        metric, names = self.train.metric, NAMES[self.goal.target]
        if metric not in names:
            raise ConfigError(
                f"train.metric: '{metric}' is not measured for {self.goal.kind}; choose one of {', '.join(names)}"
            )
        if self.train.epochs is None:  # else `over` looks when the steps are known
            self.schedule.factor(0, self.train.steps)  # refuses a warmup longer than the training

    @property
    def goal(self) -> ObjectiveConfig:
        """The objective, spelled out."""
        return self.objective or (Language() if isinstance(self.data, Text) else Classification())

    def over(self, examples: int) -> "Recipe":
        """The recipe in steps, for a training split of `examples` examples. ConfigError if the warmup does not fit."""
        train = self.train.over(examples)
        self.schedule.factor(0, train.steps)
        return self if train == self.train else replace(self, train=train)

    def build(self, spec: Spec) -> Task:
        """A fresh Task on the CPU; its weights depend on `seed`, model and spec alone."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of(self.seed, "weights"))  # torch's own also seeds GPUs: 0.7 ms
            with out_of_memory("model", "make the model smaller"):
                task = Task(self.model.build(spec), self.goal)
        dropouts = [module for module in task.modules() if isinstance(module, Dropout)]
        for salt, module in enumerate(dropouts):
            module.salt = salt
        return task

    def outline(self, spec: Spec) -> Task:
        """The same Task without numbers: its tensors are on the meta device, and take no memory."""
        with torch.device("meta"):
            return self.build(spec)


def has_batch_norm(recipe: Recipe) -> bool:
    """Whether the model normalizes by statistics of a batch, so that the examples of a batch act on each other."""
    return getattr(recipe.model, "norm", None) == "batch"


@dataclass(frozen=True)
class Elastic:
    """A worker count that may change while the run goes on, with the same numbers."""

    min: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.max:
            raise ValueError(f"min must be at least 1 and at most max, got min {self.min} and max {self.max}")


@dataclass(frozen=True)
class TrainRun:
    """Where and how one recipe is trained. In a file the recipe's keys and these stand side by side.

    `workers` 0 trains in this process, N on N Ray workers with the same numbers, `{min, max}` elastically. A worker
    whose processor share is below one shares a processor with others.
    `resume` true goes on in `run_dir`; a run's name or path goes on there. `init` starts from another run's weights.
    `repeat` trains many members of the recipe, over seeds, folds or bootstraps; the workers are then processes of this
    machine, or with an `address` (`local`: one of its own) of Ray.
    """

    recipe: Recipe
    repeat: Repeat | None = None
    workers: int | Elastic = 0
    cpus_per_worker: float = 1.0
    strategy: Literal["ddp", "fsdp"] = "ddp"
    address: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    run_dir: str | None = None
    resume: bool | str = False
    init: str | None = None
    max_failures: int = 3

    def __post_init__(self) -> None:
        if isinstance(self.workers, int) and self.workers < 0:
            raise ValueError(f"workers must be 0 (this process) or more, got {self.workers}")
        if not self.cpus_per_worker > 0:
            raise ValueError(f"cpus_per_worker must be above 0, got {self.cpus_per_worker}")
        if self.max_failures < 0:
            raise ValueError(f"max_failures must be 0 or more, got {self.max_failures}")
        if self.resume is True and self.run_dir is None:
            raise ValueError("resume true goes on in run_dir, which is not set; name it, or write resume=RUN")

    def absolute(self) -> "TrainRun":
        """The same with paths that mean the same in every process."""
        data, init = self.recipe.data, self.init
        if not data.path.startswith("bundled:"):
            data = replace(data, path=str(user_path(data.path, "data.path").resolve()))
        init = str(Path(init).resolve()) if init else None
        return replace(self, recipe=replace(self.recipe, data=data), init=init)
