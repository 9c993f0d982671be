"""`fit_all`: many small fits, told to one executor that decides how many run at once."""

from collections.abc import Sequence

from core.errors import ConfigError
from core.population.alone import fit_alone
from core.population.choose import Backend, Choice, choose
from core.population.lockstep import fit_together
from core.population.member import Finished, Member, Outcome, Signature, ignore
from core.population.memory import is_memory
from core.runtime import LOCAL, Record, Runtime


def fit_all(
    members: Sequence[Member],
    backend: Backend = "auto",
    runtime: Runtime = LOCAL,
    free_bytes: int | None = None,
    finished: Finished = ignore,
) -> list[Outcome]:
    """Trains all members; outcomes come in their order. What `core.train.fit` gives a member is what is right.

    `backend`: `loop` is that, one after the other; `vmap` trains those of one architecture together; `auto` times both
    on the first steps and takes the faster, and the event `population` says which and why. Members of different
    architectures go in populations of their own, and more than fit into memory (`free_bytes`, null: what is free) in
    several. Records carry the key `member`; `finished` gets each outcome as soon as there is one. ConfigError for
    no members, or two of one name.
    """
    names = [member.name for member in members]
    if not names:
        raise ConfigError("population: there are no members; name at least one")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"population: two members are called {twice}; records and results are kept by name")
    outcomes: dict[str, Outcome] = {}
    for bucket in buckets(members):
        for outcome in _fit_bucket(bucket, backend, runtime, free_bytes, finished):
            outcomes[outcome.name] = outcome
    return [outcomes[name] for name in names]


def buckets(members: Sequence[Member]) -> list[list[Member]]:
    """The members by signature, in the order in which each first appears."""
    found: dict[Signature, list[Member]] = {}
    for member in members:
        found.setdefault(Signature.of(member), []).append(member)
    return list(found.values())


def _said(members: list[Member], choice: Choice) -> Record:
    said: Record = {"event": "population", "members": len(members), "backend": choice.backend, "reason": choice.reason}
    if choice.backend == "vmap":
        said |= {"members_at_once": choice.at_once, "bytes_per_member": choice.each_bytes}
    return said


def _fit_bucket(
    members: list[Member], backend: Backend, runtime: Runtime, free_bytes: int | None, finished: Finished
) -> list[Outcome]:
    choice, begun = choose(members, backend, runtime, free_bytes, finished)
    runtime.report(_said(members, choice))
    outcomes = dict(begun.lockstep.outcomes) if begun else {}

    def keep(outcome: Outcome) -> None:
        """What has ended stays so, even if memory runs out for those beside it."""
        outcomes[outcome.name] = outcome
        finished(outcome)

    at_once = choice.at_once
    lockstep = begun.go_on(runtime, keep) if begun else None
    del begun  # which would keep a population that memory had no room for
    while rest := [member for member in members if member.name not in outcomes]:
        if runtime.should_stop() and not lockstep:
            outcomes |= {member.name: Outcome(member.name) for member in rest}
        elif choice.backend == "loop":
            keep(fit_alone(rest[0], runtime))
        else:
            try:
                fit_together(members[:at_once] if lockstep else rest[:at_once], runtime, keep, lockstep)
            except RuntimeError as error:
                at_once = _fewer(at_once, error)
                runtime.report({"event": "warning", "message": f"memory: going on with {at_once} members at once"})
            finally:
                lockstep = None
    return list(outcomes.values())


def _fewer(at_once: int, error: RuntimeError) -> int:
    """Half as many, if it was memory that did not suffice; else, and for a single member, the error."""
    if not is_memory(error) or at_once == 1:
        raise error
    return (at_once + 1) // 2
