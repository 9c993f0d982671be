"""Which executor is faster for these members: both are timed on real first steps, once for each kind of member; and how
many members memory holds at once. Steps that members make together are not wasted: training goes on from them.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from statistics import median_low
from typing import Any, Literal

import torch

from core.errors import ConfigError, WorkerError, is_memory
from core.learner import start
from core.population.feed import Feed
from core.population.lockstep import Lockstep
from core.population.member import Finished, Member, Signature, ignore
from core.population.memory import members_at_once
from core.population.population import Population
from core.runtime import LOCAL, Record, Runtime
from core.train import train_step

Backend = Literal["loop", "vmap", "auto"]
SHARE, LEAST, MOST = 50, 2, 8  # one step in so many is timed, after one that warms up
LOST = (inf, 1.3, 1.0)  # if one, two, three of them all take so many times what they take alone, more tell no other
ALONE_S = 0.1  # so long more steps of one member are timed, which still become faster
UNTIMED = "the first member diverges too soon to be timed alone"
GAIN = 0.95  # what a step together may take of the steps alone: its members also must be taken apart to be evaluated


@dataclass(frozen=True)
class Choice:
    """The executor, and why. With `vmap`, how many train at once, and the bytes that each is expected to take."""

    backend: Literal["loop", "vmap"]
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
    """What a run's events say was decided, by member: an interrupted run does not decide anew."""
    found: dict[str, Chosen] = {}
    for event in events:
        if event["event"] == "population" and "names" in event:
            size = (event.get("members_at_once", 1), event.get("bytes_per_member", 0))
            one = Chosen(Choice(event["backend"], event["reason"], *size), tuple(event["names"]))
            found |= dict.fromkeys(one.names, one)
    return found


@dataclass(frozen=True)
class Begun:
    """The first members of a choice after their first steps together, and what is still to be said of those."""

    lockstep: Lockstep
    held: list[Callable[[], None]]

    def said(self) -> None:
        """Says it; from now on members speak for themselves."""
        for say in self.held:
            say()


_KNOWN: dict[tuple[Signature, int, int, str], Choice] = {}


def forget() -> None:
    """Times everything anew: for measurements, and where a machine has become another."""
    _KNOWN.clear()


def choose(
    members: Sequence[Member],
    wanted: Backend,
    runtime: Runtime = LOCAL,
    free_bytes: int | None = None,
    finished: Finished = ignore,
    most: int | None = None,
) -> tuple[Choice, Begun | None]:
    """The executor for members that share a signature. `vmap` too gives way to the loop where it cannot work.

    `free_bytes`: the memory to count with; null is what the device has free. `most`: members at once, at most.
    """
    if wanted == "loop":
        return Choice("loop", "asked for"), None
    if len(members) == 1 and wanted == "auto":
        return Choice("loop", "there is one member"), None
    begun: Begun | None = None
    some = members[:1]  # whose memory is looked at first
    try:
        largest = max(members, key=lambda member: member.shard.rows(member.recipe.train))
        at_once, each_bytes = members_at_once(largest, runtime.device, free_bytes)
        some = members[: at_once if most is None else min(at_once, most)]
        key = (Signature.of(members[0]), len(some), torch.get_num_threads(), str(runtime.device))
        if wanted == "auto" and key in _KNOWN:
            return replace(_KNOWN[key], reason=f"{_KNOWN[key].reason} (known from before)"), None
        choice = Choice("vmap", "asked for", len(some), each_bytes)
        if wanted == "vmap":
            require_rules(some[:2], runtime)
        else:
            found, begun = _time(choice, some, runtime, finished)
            if found.reason != UNTIMED:
                _KNOWN[key] = found
            choice = replace(choice, reason=found.reason) if begun else found
    except (ConfigError, RuntimeError) as error:
        if not is_memory(error):  # functorch has no rule for an operation
            return Choice("loop", f"these members cannot be stacked: {_first_line(error)}"), None
        if len(some) == 1:
            return Choice("loop", "memory does not suffice for two members at once"), None
        fewer = (len(some) + 1) // 2
    else:
        return choice, begun
    return choose(members, wanted, runtime, free_bytes, finished, fewer)


def _time(
    stacked: Choice, members: Sequence[Member], runtime: Runtime, finished: Finished
) -> tuple[Choice, Begun | None]:
    """The faster executor; and the members that began together, if they are to go on so, or have already ended."""
    count = min(MOST, max(LEAST, min(member.recipe.train.steps for member in members) // SHARE))
    loop_s = _loop_seconds(members[0], replace(runtime, report=lambda record: None), count) * len(members)
    held: list[Callable[[], None]] = []
    quiet = replace(runtime, report=lambda record: held.append(partial(runtime.report, record)))
    lockstep = Lockstep(members, quiet, lambda outcome: held.append(partial(finished, outcome)))
    with _no_fallback():
        seconds = [_step_seconds(lockstep, runtime)]
        while lockstep.at and len(seconds) <= count and not _is_lost(seconds[1:], loop_s):
            seconds.append(_step_seconds(lockstep, runtime))
    # the first step also warms up; the others found their batches in the block that it had prepared
    together_s = median_low(seconds[1:]) + lockstep.feed.pace if seconds[1:] else seconds[0]
    said = (
        f"a step of {len(members)} members takes {1e3 * together_s:.3g} ms together, {1e3 * loop_s:.3g} ms one after "
        "the other"
    )
    if loop_s == inf:
        said = UNTIMED
    choice = replace(stacked, reason=said) if together_s < GAIN * loop_s else Choice("loop", said)
    keeps = choice.backend == "vmap" or not lockstep.at
    return choice, Begun(lockstep, held) if keeps else None


def _is_lost(together: Sequence[float], alone: float) -> bool:
    return bool(together) and min(together) > LOST[min(len(together), len(LOST)) - 1] * alone


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


def _loop_seconds(member: Member, runtime: Runtime, count: int) -> float:
    """Seconds of a step of one member in the ordinary loop, of at least `count` steps the later half's median; infinite
    if it diverges before."""
    recipe = member.recipe
    learner = start(recipe, member.shard.spec, member.weights, runtime)

    # batches that `fit` may prepare on threads beside the steps are timed in turn with them: at most a seventh too much
    ahead = member.shard.batch(recipe.train, 0, learner.is_noisy) if member.shard.works_ahead else None

    def step() -> None:
        batch = ahead or member.shard.batch(recipe.train, learner.progress.step, learner.is_noisy)
        train_step(learner, {name: tensor.to(runtime.device) for name, tensor in batch.items()}, recipe, runtime)

    seconds: list[float] = []
    try:
        while len(seconds) <= count or (sum(seconds[1:]) < ALONE_S and len(seconds) <= 4 * count):
            seconds.append(_seconds(step, runtime))
    except WorkerError:
        if len(seconds) <= count:
            return inf
    return median_low(seconds[len(seconds) // 2 :])


def _step_seconds(lockstep: Lockstep, runtime: Runtime) -> float:
    """Of the next step of all members, without the evaluations after it."""
    before = lockstep.paused_s
    return _seconds(lockstep.advance, runtime) - (lockstep.paused_s - before)


def _seconds(step: Callable[[], object], runtime: Runtime) -> float:
    began = time.perf_counter()
    step()
    if runtime.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]
