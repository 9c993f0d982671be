"""How trees are grown across clients, and the plan that the server makes of it for all of them."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from core.data import Spec
from core.errors import ConfigError


@dataclass(frozen=True)
class TreesConfig:
    """bagging: in every round each client adds trees to the shared model, and all that is added counts 1 / clients, so
    the model moves by the mean of what the clients would do. cyclic: in every round one client, the next in turn, goes
    on with the model.

    local_trees: boosting steps of a client in a round, each of one tree, or of one per class where there are 3 or more.
    subsample: the share of a client's rows that each tree sees. l2: on the leaves.
    """

    kind: Literal["trees"] = "trees"
    mode: Literal["bagging", "cyclic"] = "bagging"
    rounds: int = 20
    local_trees: int = 1
    eta: float = 0.3
    max_depth: int = 6
    subsample: float = 1.0
    l2: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rounds", "local_trees", "max_depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("eta", "subsample"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {getattr(self, name)}")
        if not 0 <= self.l2 < math.inf:
            raise ValueError(f"l2 must be 0 or more and finite, got {self.l2}")


@dataclass(frozen=True)
class Plan:
    """What every client must know, and all of it flat: it travels as a config record.

    features: F; outputs: classes, or 1 real value; start: the output before the first tree, as a probability or a
    value; clients: how many there are.
    """

    config: TreesConfig
    target: str
    features: int
    outputs: int
    clients: int
    start: float = 0.5

    @classmethod
    def of(cls, config: TreesConfig, spec: Spec, clients: int) -> Self:
        """ConfigError for text, and for several targets."""
        if spec.target == "token":
            raise ConfigError("trees: grow on tables and images, not on text; choose another data.kind")
        if spec.target == "real" and spec.outputs > 1:
            raise ConfigError(f"trees: predict one value, but the data has {spec.outputs} targets; keep one")
        return cls(config, spec.target, math.prod(spec.shape), spec.outputs, clients)

    @property
    def width(self) -> int:
        """Trees of one boosting step."""
        return self.outputs if self.outputs > 2 else 1

    @property
    def added(self) -> int:
        """Trees that a client adds in a round."""
        return self.config.local_trees * self.width

    def flat(self) -> dict[str, Any]:
        """The inverse of `read`."""
        return {**asdict(self.config), **{name: value for name, value in vars(self).items() if name != "config"}}

    @classmethod
    def read(cls, record: dict[str, Any]) -> Self:
        """From a record, which may hold more. KeyError if something is missing, ValueError if it is out of range."""
        config = TreesConfig(**{name: record[name] for name in TreesConfig.__dataclass_fields__})
        return cls(config, **{name: record[name] for name in cls.__dataclass_fields__ if name != "config"})

    def library_parameters(self, seed: int, least_rows: int = 0) -> dict[str, Any]:
        """XGBoost's names. One thread: sums of gradients in another order would round otherwise.

        least_rows: of a leaf. The library bounds the sum of a leaf's second derivatives, which for a row are at most
        1 (squared error), p (1 - p) <= 1/4 (two classes) or 2 p (1 - p) <= 1/2 (more).
        """
        objective = "reg:squarederror" if self.target == "real" else "binary:logistic"
        chosen: dict[str, Any] = {"objective": objective}
        if self.width > 1:
            chosen = {"objective": "multi:softprob", "num_class": self.outputs}
        if least_rows:
            chosen["min_child_weight"] = least_rows * (
                1.0 if self.target == "real" else 0.25 if self.width == 1 else 0.5
            )
        return {
            **chosen,
            "base_score": self.start,
            "eta": self.config.eta,
            "max_depth": self.config.max_depth,
            "subsample": self.config.subsample,
            "reg_lambda": self.config.l2,
            "tree_method": "hist",
            "nthread": 1,
            "seed": seed,
            "verbosity": 1,
        }
