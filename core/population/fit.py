"""`fit_all`: many small fits, told to one executor that decides how many run at once."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from core.errors import ConfigError, is_memory
from core.population.alone import fit_alone
from core.population.executor import Backend, Chosen, choose
from core.population.lockstep import Lockstep, fit_together
from core.population.member import Finished, Member, Outcome, Signature, ignore
from core.population.places import NOWHERE, TOGETHER, Places
from core.population.population import Misfit
from core.runtime import LOCAL, Runtime
from core.storage.checkpoint import Snapshot


def fit_all(
    members: Sequence[Member],
    backend: Backend = "auto",
    runtime: Runtime = LOCAL,
    free_bytes: int | None = None,
    finished: Finished = ignore,
    places: Places = NOWHERE,
) -> list[Outcome]:
    """Trains all members; outcomes come in their order. What `core.train.fit` gives a member is what is right.

    `backend`: `loop` is that, one after the other; `vmap` trains those of one architecture together; `auto` takes the
    one that is faster by rule, and the event `population` says which and why. Members of different architectures go in
    populations of their own, and more than `rows_at_once`, or than fit into memory (`free_bytes`, null: what is free),
    in several. Records carry the key `member`; `finished` gets each outcome as soon as there is one. ConfigError for no
    members, or two of one name.

    In `places` members leave what they go on from if they are interrupted, and go on from what is there: with the same
    numbers, as the executor is the same again. Its `ended` members are not handed to `finished`; those that need not
    be trained for others have no outcome.
    """
    names = [member.name for member in members]
    if not names:
        raise ConfigError("population: there are no members; name at least one")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"population: two members are called {twice}; records and results are kept by name")
    work = _Work(runtime, finished, places)
    by_name = {member.name: member for member in members}
    for place in list(places.populations):
        work.go_on(place, by_name)
    if left := work.left(members):
        for bucket in buckets(left, places.chosen):
            work.train(bucket, backend, free_bytes)
    return [work.outcomes[name] for name in names if name in work.outcomes]


def buckets(members: Sequence[Member], chosen: Mapping[str, Chosen] = NOWHERE.chosen) -> list[list[Member]]:
    """The members by signature, and by what was decided for them before, in the order in which each first appears."""
    found: dict[tuple[Signature, Chosen | None], list[Member]] = {}
    for member in members:
        found.setdefault((Signature.of(member), chosen.get(member.name)), []).append(member)
    return list(found.values())


class _Work:
    """What has become of the members so far, and how the others train."""

    def __init__(self, runtime: Runtime, finished: Finished, places: Places) -> None:
        self.runtime, self.finished, self.places = runtime, finished, places
        self.outcomes: dict[str, Outcome] = {}

    def left(self, members: Sequence[Member]) -> list[Member]:
        """Those that have neither ended nor been stopped."""
        return [m for m in members if m.name not in self.outcomes and m.name not in self.places.ended]

    def keep(self, outcome: Outcome) -> None:
        """What has ended stays so, even if memory runs out for those beside it."""
        self.outcomes[outcome.name] = outcome
        if outcome.name not in self.places.ended:
            self.finished(outcome)

    def go_on(self, place: str, by_name: Mapping[str, Member]) -> None:
        """A population goes on where it was interrupted; its members begin again if its checkpoint does not fit."""
        try:
            lockstep = self._restored(self.places.populations.pop(place), by_name)
            going_on = [by_name[name] for name in lockstep.at]
            count = len(self.left(going_on))
            self.runtime.report({"event": "resumed", "members": count, "step": lockstep.step})
            self._together(place, going_on, lockstep)
        except Misfit as error:
            self._begin_again(place, f"checkpoints/{place}: {error}; its members begin again")
        except RuntimeError as error:
            if not is_memory(error):
                raise
            self._begin_again(place, f"memory: does not suffice for checkpoints/{place}; its members begin again")

    def _restored(self, snapshot: Snapshot, by_name: Mapping[str, Member]) -> Lockstep:
        lockstep = Lockstep([by_name[name] for name in snapshot.state["rows"]], self.runtime)
        lockstep.restore(snapshot)
        return lockstep

    def train(self, members: list[Member], backend: Backend, free_bytes: int | None) -> None:
        """Members of one signature, from their beginning, or from where each that trained alone was interrupted."""
        if known := self.places.chosen.get(members[0].name):
            choice = replace(known.choice, reason="as before")
        else:
            choice = choose(members, backend, self.runtime, free_bytes)
        keeps = self.places.directory is not None
        self.runtime.report(choice.said(members, with_names=keeps and not known))
        at_once = choice.at_once
        while rest := self.left(members):
            if self.runtime.should_stop():
                self.outcomes |= {member.name: Outcome(member.name) for member in rest}
            elif choice.backend == "loop":
                self._alone(rest[0])
            else:
                part = rest[:at_once]
                try:
                    self._together(TOGETHER + part[0].name, part)
                except RuntimeError as error:
                    at_once = _fewer(at_once, error)
                    self._begin_again(TOGETHER + part[0].name, f"memory: going on with {at_once} members at once")
                    choice = replace(choice, at_once=at_once, reason="memory did not suffice for more at once")
                    self.runtime.report(choice.said(self.left(members), with_names=keeps))

    def _alone(self, member: Member) -> None:
        with self.places.open(member.name, member.recipe.train.keep_last) as checkpoints:
            outcome = fit_alone(member, self.runtime, checkpoints)
            self.keep(outcome)
        if outcome.ended != "stopped":
            self.places.remove(member.name)

    def _together(self, place: str, members: Sequence[Member], lockstep: Lockstep | None = None) -> None:
        with self.places.open(place, members[0].recipe.train.keep_last) as checkpoints:

            def keep(outcome: Outcome) -> None:
                if checkpoints:
                    checkpoints.wait()  # a member whose end is on the disk must be a row of what the others go on from
                self.keep(outcome)

            fit_together(members, self.runtime, keep, lockstep, checkpoints)
        if all(self.outcomes[member.name].ended != "stopped" for member in members):
            self.places.remove(place)

    def _begin_again(self, place: str, why: str) -> None:
        self.places.remove(place)
        self.runtime.report({"event": "warning", "message": why})


def _fewer(at_once: int, error: RuntimeError) -> int:
    """Half as many, if it was memory that did not suffice; else, and for a single member, the error."""
    if not is_memory(error) or at_once == 1:
        raise error
    return (at_once + 1) // 2
