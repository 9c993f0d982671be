"""Which executor trains members, and how many of them at once: by rules of the recipe, never by a clock.

So every process and every machine, and every run of the same recipe, takes the same executor and gets the same bits.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from core.data import Shard, Spec
from core.errors import ConfigError, is_memory
from core.estimate import step_flops
from core.models.recurrent import Recurrent
from core.population.feed import Feed
from core.population.member import Member
from core.population.memory import members_at_once
from core.population.population import Population
from core.recipe import Recipe
from core.runtime import LOCAL, Record, Runtime

Executor = Literal["loop", "vmap"]
Backend = Literal["loop", "vmap", "auto"]
# FLOPs of a step below which the dispatch of its kernels costs more than they do (measured; docs/results.md)
SMALL_FLOPS = 8e7
# Rows of one population, and numbers in its matrix, at most: more gain no speed (measured; docs/results.md)
MOST_ROWS, MOST_NUMBERS = 64, 1 << 26


@dataclass(frozen=True)
class Choice:
    """The executor, and why. With `vmap`, how many train at once, and the bytes that each is expected to take."""

    backend: Executor
    reason: str
    at_once: int = 1
    each_bytes: int = 0

    def said(self, members: Sequence[Member], with_names: bool) -> Record:
        """The event of a decision; with the members' names, `chosen` finds it again."""
        said: Record = {"event": "population", "members": len(members), "backend": self.backend, "reason": self.reason}
        if self.backend == "vmap":
            said |= {"members_at_once": self.at_once, "bytes_per_member": self.each_bytes}
        if with_names:
            said["names"] = [member.name for member in members]
        return said


@dataclass(frozen=True, eq=False)
class Chosen:
    """A decision that was made for these members when they began."""

    choice: Choice
    names: tuple[str, ...]


def chosen(events: Sequence[Record]) -> dict[str, Chosen]:
    """What a run's events say was decided, by member: a resumed run keeps its parts, whatever memory is free now."""
    found: dict[str, Chosen] = {}
    for event in events:
        if event["event"] == "population" and "names" in event:
            size = (event.get("members_at_once", 1), event.get("bytes_per_member", 0))
            one = Chosen(Choice(event["backend"], event["reason"], *size), tuple(event["names"]))
            found |= dict.fromkeys(one.names, one)
    return found


def choose(
    members: Sequence[Member], wanted: Backend, runtime: Runtime = LOCAL, free_bytes: int | None = None
) -> Choice:
    """The executor for members that share a signature. `vmap` too gives way to the loop where it cannot work.

    `free_bytes`: the memory to count with; null is what the device has free.
    """
    first = members[0]
    if wanted == "loop":
        return Choice("loop", "asked for")
    if len(members) == 1 and wanted == "auto":
        return Choice("loop", "there is one member")
    try:
        if wanted == "auto" and executor_for(first.recipe, first.shard.spec, runtime.device) == "loop":
            return Choice("loop", "each of these models fills a processor by itself")
        largest = max(members, key=lambda member: member.shard.rows(member.recipe.train))
        fit, each_bytes = members_at_once(largest, runtime.device, free_bytes)
        require_rules(members[:2], runtime)
    except (ConfigError, RuntimeError) as error:
        if is_memory(error):
            return Choice("loop", "memory does not suffice for two members at once")
        return Choice("loop", f"these members cannot be stacked: {_first_line(error)}")
    most = rows_at_once(sum(p.numel() for p in first.recipe.outline(first.shard.spec).parameters()))
    reason = "asked for" if wanted == "vmap" else "the dispatch of a step's kernels costs more than they do"
    if fit < min(most, len(members)):
        reason = f"{reason}; memory holds {fit} at once"
    return Choice("vmap", reason, min(len(members), most, fit), each_bytes)


def executor_for(recipe: Recipe, spec: Spec, device: torch.device) -> Executor:
    """The faster executor by rule.

    Rows of a population pay where dispatching kernels costs more than running them: on a CPU for small models, but not
    for recurrent ones, whose fused kernels have no batching rule; on a GPU for all that can be stacked.
    """
    if isinstance(recipe.model, Recurrent) or recipe.train.precision == "fp16":
        return "loop"
    return "vmap" if device.type == "cuda" or step_flops(recipe, spec) < SMALL_FLOPS else "loop"


def rows_at_once(numbers: int) -> int:
    """How many models of so many numbers train as rows of one matrix."""
    return max(1, min(MOST_ROWS, MOST_NUMBERS // max(1, numbers)))


def require_stackable(recipe: Recipe, shard: Shard, runtime: Runtime = LOCAL) -> None:
    """Raises ConfigError if an operation of the model has no batching rule."""
    member = Member("first", recipe, shard)
    try:
        require_rules([member, member], runtime)
    except RuntimeError as error:
        raise ConfigError(f"backend: vmap cannot stack this model: {_first_line(error)}; use backend=loop") from None


def require_rules(members: Sequence[Member], runtime: Runtime) -> None:
    """RuntimeError if an operation of these members would fall back to a hidden loop."""
    population = Population(members, replace(runtime, report=lambda record: None))
    with _no_fallback():
        population.step(Feed(members, runtime.device, population.is_noisy).take())


@contextmanager
def _no_fallback() -> Iterator[None]:
    """An operation without a batching rule raises RuntimeError instead of running member by member, slowly."""
    functorch: Any = torch._C._functorch
    functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_enabled(True)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]
