"""A member of a population: one small fit; what became of it; and which members can go together."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from core.data import Shard
from core.errors import WorkerError
from core.recipe import Recipe, has_batch_norm
from core.train import Result


@dataclass(frozen=True)
class Member:
    """One fit of a population. `name` is its key in records and results; `weights` as in `core.train.fit`.

    `recipe` counts in steps: epochs are resolved for this shard.
    """

    name: str
    recipe: Recipe
    shard: Shard
    weights: dict[str, Tensor] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "recipe", self.recipe.over(self.shard.sizes["train"]))


@dataclass(frozen=True)
class Outcome:
    """What became of a member. `result.task` has the weights that the recipe keeps, the last or the best ones.

    A member that diverged has an `error` instead; it does not disturb the others.
    """

    name: str
    result: Result | None = None
    error: WorkerError | None = None

    @property
    def ended(self) -> Literal["done", "early", "stopped", "failed"]:
        """As `Result.ended`; `stopped` also if it was not begun, because the run was asked to stop."""
        if self.error is not None:
            return "failed"
        return self.result.ended if self.result else "stopped"

    def require(self) -> Result:
        """The result. Raises the member's error if it has none."""
        if self.result is None:
            raise self.error or WorkerError(f"population: member {self.name} was stopped before it began")
        return self.result


Finished = Callable[[Outcome], None]


def ignore(outcome: Outcome) -> None:
    """Who waits for all of them needs none early."""


@dataclass(frozen=True)
class Signature:
    """What members must share to be stacked: everything that decides a shape or an operation."""

    parts: tuple[Any, ...]

    @classmethod
    def of(cls, member: Member) -> "Signature":
        """Two members with equal signatures can be rows of one population."""
        recipe, train = member.recipe, member.recipe.train
        optimizer = recipe.optimizer
        return cls(
            (
                _without(recipe.model, dropout=0.0),
                _without(recipe.goal, label_smoothing=0.0),
                member.shard.spec,
                optimizer.kind,
                getattr(optimizer, "decay_vectors", False),
                getattr(optimizer, "nesterov", False),
                getattr(optimizer, "momentum", 0.0) > 0,
                recipe.freeze,
                recipe.privacy is None,
                train.batch_size if filled_rows(recipe, member.shard) is None else member.shard.rows(train),
                train.accumulate,
                train.precision,
                train.compile,
                train.log_every,
            )
        )


def filled_rows(recipe: Recipe, shard: Shard) -> int | None:
    """The number of rows in each batch, where members of one stack must share it; None if any numbers go together.

    Shorter batches are filled up with rows of weight 0, which would count in batch statistics.
    """
    return shard.rows(recipe.train) if has_batch_norm(recipe) else None


def _without(config: Any, **values: Any) -> Any:
    """The config with the fields that may differ from member to member set to one value."""
    return replace(config, **{name: value for name, value in values.items() if hasattr(config, name)})
