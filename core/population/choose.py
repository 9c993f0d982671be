"""Which executor is faster for these members: both are timed on real first steps, once for each kind of member; and how
many members memory holds at once.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Literal

import torch

from core.errors import ConfigError, WorkerError
from core.learner import start
from core.population.feed import Feed
from core.population.member import Member, Signature
from core.population.memory import members_at_once
from core.population.population import Population
from core.runtime import LOCAL, Runtime
from core.train import train_step

Backend = Literal["loop", "vmap", "auto"]
TIMED = 2  # steps of each executor, after one that warms up; the faster counts
PATIENCE_S = 1.0  # one executor's probe ends after its first timed step past this


@dataclass(frozen=True)
class Choice:
    """The executor, and why. With `vmap`, how many train at once, and the bytes that each is expected to take."""

    backend: Literal["loop", "vmap"]
    reason: str
    at_once: int = 1
    each_bytes: int = 0


_KNOWN: dict[tuple[Signature, int, int, str], Choice] = {}


def forget() -> None:
    """Times everything anew: for measurements, and where a machine has become another."""
    _KNOWN.clear()


def choose(
    members: Sequence[Member], wanted: Backend, runtime: Runtime = LOCAL, free_bytes: int | None = None
) -> Choice:
    """The executor for members that share a signature. `vmap` too gives way to the loop where it cannot work.

    `free_bytes`: the memory to count with; null is what the device has free.
    """
    if wanted == "loop":
        return Choice("loop", "asked for")
    if len(members) == 1 and wanted == "auto":
        return Choice("loop", "there is one member")
    try:
        at_once, each_bytes = members_at_once(members[0], runtime.device, free_bytes)
        some = members[:at_once]
        key = (Signature.of(members[0]), len(some), torch.get_num_threads(), str(runtime.device))
        if wanted == "auto" and key in _KNOWN:
            return replace(_KNOWN[key], reason=f"{_KNOWN[key].reason} (known from before)")
        choice = Choice("vmap", "asked for", len(some), each_bytes)
        quiet = replace(runtime, report=lambda record: None)
        if wanted == "vmap":
            _stacked_seconds(some[:2], quiet, 0)  # whether it can be done at all
        else:
            together_s = _stacked_seconds(some, quiet, TIMED)
            choice = _faster(choice, _loop_seconds(members[0], quiet) * len(some), together_s)
    except (ConfigError, RuntimeError) as error:  # RuntimeError: functorch has no rule for an operation
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return Choice("loop", f"these members cannot be stacked: {_first_line(error)}")
    _KNOWN[key] = choice
    return choice


def _faster(stacked: Choice, loop_s: float, together_s: float) -> Choice:
    if loop_s == inf:
        return replace(stacked, reason="the first member diverges too soon to be timed alone")
    said = (
        f"a step of {stacked.at_once} members takes {1e3 * together_s:.3g} ms together, {1e3 * loop_s:.3g} ms one "
        "after the other"
    )
    return replace(stacked, reason=said) if together_s < loop_s else Choice("loop", said)


def _stacked_seconds(members: Sequence[Member], runtime: Runtime, timed: int) -> float:
    """Seconds of a step of all members together. RuntimeError if an operation would fall back to a hidden loop."""
    population = Population(members, runtime)
    feed = Feed(members, runtime.device, population.is_noisy)
    functorch: Any = torch._C._functorch
    functorch._set_vmap_fallback_enabled(False)
    try:
        population.step(feed.take())
        return _fastest(lambda: population.step(feed.take()), runtime, timed)
    finally:
        functorch._set_vmap_fallback_enabled(True)


def _loop_seconds(member: Member, runtime: Runtime) -> float:
    """Seconds of a step of one member in the ordinary loop; infinite if it diverges at once."""
    recipe = member.recipe
    learner = start(recipe, member.shard.spec, member.weights, runtime)

    def step() -> None:
        batch = member.shard.batch(recipe.train, learner.progress.step, learner.is_noisy)
        train_step(learner, {name: tensor.to(runtime.device) for name, tensor in batch.items()}, recipe, runtime)

    try:
        step()
        return _fastest(step, runtime, TIMED)
    except WorkerError:
        return inf


def _fastest(step: Callable[[], object], runtime: Runtime, timed: int) -> float:
    seconds, began = [0.0] if not timed else [], time.perf_counter()
    for _ in range(timed):
        at = time.perf_counter()
        step()
        if runtime.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - at)
        if time.perf_counter() - began > PATIENCE_S:
            break
    return min(seconds)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]
