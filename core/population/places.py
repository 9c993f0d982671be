"""Where members that are interrupted leave what they go on from, in the `checkpoints/` of their run:

    seed-3/step-000200/             of a member that trains alone
    together-seed-0/step-000200/    of a population, by the first of its members

A place is there until its members have ended. Each has one owner, whoever trains the member that it is named after.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MappingProxyType

from core.errors import DataError
from core.population.executor import Chosen
from core.runtime import Record
from core.storage.atomic import remove_tree
from core.storage.checkpoint import Checkpointer, Restored, Snapshot, load_latest

TOGETHER = "together-"


class Places:
    """The places in one directory; without a directory nothing is kept.

    ended: members that are not trained again; one of them still moves where others shared their population with it, for
    rows have the same bits only in the same company. chosen: what was decided before, by member. populations: those
    to go on with, by their places.
    """

    def __init__(
        self,
        directory: Path | None = None,
        ended: Collection[str] = (),
        chosen: Mapping[str, Chosen] = MappingProxyType({}),
    ) -> None:
        self.directory, self.ended, self.chosen = directory, frozenset(ended), chosen
        self.populations: dict[str, Snapshot] = {}

    def read(self, names: Sequence[str]) -> list[Record]:
        """Finds the populations named after these members, and removes what has had its time; returns what is to be
        said of it. Raises DataError if a population has checkpoints and none of them is whole."""
        said: list[Record] = []
        for name in names:
            if name in self.ended:
                self.remove(name)
            place = TOGETHER + name
            restored = _latest(self._path(place))
            for path, reason in restored.rejected:
                said.append({"event": "checkpoint_rejected", "checkpoint": f"{place}/{path.name}", "reason": reason})
            if restored.snapshot and self.ended.issuperset(_training(restored.snapshot)):
                self.remove(place)
            elif restored.snapshot:
                self.populations[place] = restored.snapshot
        return said

    @property
    def rows(self) -> set[str]:
        """The members in the rows of those populations."""
        return {name for snapshot in self.populations.values() for name in snapshot.state["rows"]}

    def open(self, place: str, keep_last: int) -> AbstractContextManager[Checkpointer | None]:
        """A place to write to."""
        return Checkpointer(self._path(place), keep_last) if self.directory else nullcontext()

    def remove(self, place: str) -> None:
        """What was there is not needed any more."""
        if self.directory and self._path(place).exists():
            remove_tree(self._path(place))

    def _path(self, place: str) -> Path:
        assert self.directory, "nothing is kept"
        return self.directory / place


NOWHERE = Places()


def reached(directory: Path, names: Sequence[str]) -> dict[str, int]:
    """The step from which each member goes on, of those that have left anything. Raises DataError as `Places.read`."""
    found: dict[str, int] = {}
    for name in names:
        if alone := _latest(directory / name).snapshot:
            found[name] = alone.step
        if together := _latest(directory / f"{TOGETHER}{name}").snapshot:
            found |= dict.fromkeys(_training(together), together.step)
    return found


def clear(directory: Path) -> None:
    """Removes all places, when all members have ended, and what a killed process has left of others."""
    for path in directory.iterdir():
        remove_tree(path)


def _latest(path: Path) -> Restored:
    restored = load_latest(path)
    if restored.rejected and not restored.snapshot:
        reason = restored.rejected[-1].reason
        raise DataError(f"resume: no checkpoint is whole ({reason}); remove {path} to train its members from the start")
    return restored


def _training(population: Snapshot) -> list[str]:
    """The rows that train; the others rest in it."""
    names: list[str] = population.state["training"]
    return names
