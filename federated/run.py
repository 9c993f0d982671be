"""A federated run: a recipe, its clients, how they are asked and how the server learns from their replies."""

from dataclasses import dataclass, field
from typing import Literal

from core.errors import ConfigError
from core.recipe import Recipe
from federated.attacks import AttackConfig
from federated.clock.devices import Devices
from federated.partition import IID, PartitionConfig
from federated.policy import Policy
from federated.strategies import FedAvg, StrategyConfig
from federated.transforms import TransformConfig

MOST_EPOCHS = 1_000_000  # of a client in one round: more is a slip of the finger, and would never end


@dataclass(frozen=True)
class Evaluation:
    """How models are judged: every so many rounds, and after the last one (0: only then).

    Each client holds out the share `held_out` of its examples; `clients` are asked (null: all). With `fine_tune_epochs`
    each of them also trains the shared model so long on its own examples and judges what comes of it.
    """

    every: int = 5
    clients: int | None = None
    held_out: float = 0.2
    fine_tune_epochs: float = 0.0

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ValueError(f"every must be 0 (only at the end) or more, got {self.every}")
        if self.clients is not None and self.clients < 1:
            raise ValueError(f"clients must be at least 1, got {self.clients}; null asks all")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must be in [0, 1), got {self.held_out}")
        if not 0 <= self.fine_tune_epochs <= MOST_EPOCHS:
            raise ValueError(
                f"fine_tune_epochs must be 0 (off) or more, at most {MOST_EPOCHS:,}, got {self.fine_tune_epochs}"
            )


@dataclass(frozen=True)
class FederateRun:
    """One recipe, trained by clients that keep their data. In a file the recipe's keys and these stand side by side.

    `cohort` clients train in each round (null: all), each for `local_epochs` over its examples or `local_steps`;
    `train.batch_size` is a client's batch, and the schedule goes over rounds. `transforms` change each update on its
    way to the server. `devices` puts the clients on a virtual clock; `attack` makes some of them hostile.

    `engine`: `inproc` is this process, `pool` spreads clients over `workers` processes or, with an `address` (`local`:
    one of its own), Ray workers; `flower` starts a SuperLink and a SuperNode for each client. `backend` `vmap` trains
    clients as rows of one matrix, `loop` one after the other, `auto` decides by the model. `max_norm` and `max_weight`
    bound what a reply may hold; null is no bound. A node of a Flower deployment has `timeout_s` seconds for an answer.
    `statistics` is what a client lets out in an evaluation; null hides nothing. A node that reads its own data goes by
    its own config, and by this where it is stricter.
    """

    recipe: Recipe
    clients: int | None = 10
    rounds: int = 20
    cohort: int | None = None
    local_epochs: float = 1.0
    local_steps: int | None = None
    partition: PartitionConfig = field(default_factory=IID)
    strategy: StrategyConfig = field(default_factory=FedAvg)
    transforms: tuple[TransformConfig, ...] = ()
    devices: Devices | None = None
    attack: AttackConfig | None = None
    evaluate: Evaluation = field(default_factory=Evaluation)
    statistics: Policy | None = None
    max_norm: float | None = None
    max_weight: float | None = None
    engine: Literal["inproc", "pool", "flower"] = "inproc"
    workers: int = 2
    cpus_per_worker: float = 1.0
    address: str | None = None
    timeout_s: float = 3600.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    backend: Literal["auto", "loop", "vmap"] = "auto"
    checkpoint_every: int = 10
    keep_last: int = 2
    run_dir: str | None = None
    resume: bool | str = False
    init: str | None = None

    def __post_init__(self) -> None:
        for name in ("rounds", "workers", "keep_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("clients", "cohort", "local_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("local_epochs", "cpus_per_worker", "timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.local_epochs > MOST_EPOCHS:
            raise ValueError(f"local_epochs must be at most {MOST_EPOCHS:,}, got {self.local_epochs:g}")
        for name in ("max_norm", "max_weight"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}; null is no bound")
        if self.checkpoint_every < 0:
            raise ValueError(f"checkpoint_every must be 0 (only at the end) or more, got {self.checkpoint_every}")
        if self.resume is True and self.run_dir is None:
            raise ConfigError("resume: true goes on in run_dir, which is not set; name it, or write resume=RUN")

    @property
    def is_asynchronous(self) -> bool:
        """Whether the server steps after every few replies, while other clients are still at work."""
        return hasattr(self.strategy, "concurrency")

    @property
    def is_stateful(self) -> bool:
        """Whether clients keep something from round to round: for the strategy, or the error of a compression."""
        return self.strategy.is_stateful or any(transform.is_stateful for transform in self.transforms)
