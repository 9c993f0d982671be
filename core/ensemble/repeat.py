"""One recipe trained many times: over seeds, folds and bootstrap resamples. `repeat` in a config is a `Repeat`.

Every member is an ordinary recipe, made by dotted overrides alone: training it by itself gives the same weights.

for member in members(recipe, Repeat(folds=5)):
    fit(override(recipe, member.overrides), ...)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from core.recipe import Recipe

MOST = 10_000  # members: each is a model on the disk, and a wish for more is a slip of the finger


@dataclass(frozen=True)
class Repeat:
    """How often, and over what, one recipe is trained: `{seeds: 8}`, `{folds: 5}`, `{bootstraps: 10}`, or with seeds
    beside folds or bootstraps, each of those once per seed.

    seeds: of weights, order and dropout, counted up from the recipe's. folds: parts of the data that are tested on in
    turn. bootstraps: resamples of the training split. Whatever is not repeated is the same for all members.
    backend: whether members train together (vmap) or in turn (loop), which differ by rounding; auto takes the one that
    is faster by a rule of the recipe.
    """

    seeds: int = 1
    folds: int = 0
    bootstraps: int = 0
    backend: Literal["auto", "loop", "vmap"] = "auto"

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")
        for name in ("folds", "bootstraps"):
            if getattr(self, name) < 0 or getattr(self, name) == 1:
                raise ValueError(f"{name} must be 0 (off) or at least 2, got {getattr(self, name)}")
        if self.folds and self.bootstraps:
            raise ValueError(f"bootstraps must be 0 where folds is set ({self.folds}), got {self.bootstraps}; keep one")
        if self.members < 2:
            raise ValueError(
                "seeds must be at least 2 where neither folds nor bootstraps is set, got 1; write for example "
                "repeat.seeds=8, repeat.folds=5 or repeat.bootstraps=10"
            )
        if self.members > MOST:
            raise ValueError(
                f"seeds must leave at most {MOST:,} members in all, got {self.members:,}; lower seeds, folds or "
                "bootstraps"
            )

    @property
    def members(self) -> int:
        """How many members there are."""
        return self.seeds * max(self.folds, self.bootstraps, 1)


@dataclass(frozen=True)
class MemberSpec:
    """One member. `override(recipe, overrides)` is its recipe; fold and bootstrap are None where they are not repeated.

    The name counts from 0 what is repeated: `seed-3` trains with the recipe's seed + 3, which is `seed`.
    """

    name: str
    overrides: Mapping[str, int]
    seed: int
    fold: int | None = None
    bootstrap: int | None = None


def members(recipe: "Recipe", repeat: Repeat) -> tuple[MemberSpec, ...]:
    """The members in order: fold by fold (or resample by resample), seed by seed.

    All hold out what the recipe holds out, as its split's seed is spelled out in each. Resamples share the recipe's
    seed, although bagging often varies both: so their spread is that of the data alone, and `seeds` adds the other.
    """
    parts, seeds = range(max(repeat.folds, repeat.bootstraps, 1)), range(repeat.seeds)
    return tuple(_member(recipe, repeat, part, i) for part in parts for i in seeds)


def _member(recipe: "Recipe", repeat: Repeat, part: int, i: int) -> MemberSpec:
    seed = recipe.seed + i
    overrides = {"seed": seed, "data.split.seed": recipe.data.split.seed_or(recipe.seed)}
    fold = bootstrap = None
    names = []
    if repeat.folds:
        fold = part
        overrides |= {"data.split.folds": repeat.folds, "data.split.fold": part}
        names.append(_numbered("fold", part, repeat.folds))
    if repeat.bootstraps:
        bootstrap = part
        overrides |= {"data.split.bootstrap": part}
        names.append(_numbered("bootstrap", part, repeat.bootstraps))
    if repeat.seeds > 1:
        names.append(_numbered("seed", i, repeat.seeds))
    return MemberSpec("-".join(names), overrides, seed, fold, bootstrap)


def _numbered(what: str, number: int, count: int) -> str:
    """Names sort as their numbers do."""
    return f"{what}-{number:0{len(str(count - 1))}}"
