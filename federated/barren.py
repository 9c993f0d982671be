"""A run in which no reply counts has trained nothing: it ends with an error that says why, never with a score."""

from collections import Counter
from collections.abc import Sequence

from core.errors import WorkerError
from federated.clock.schedule import Lost, Reason
from federated.intake import Told

MOST_BARREN = 3  # rounds in a row in which clients have worked and no reply counted
REMEDIES: dict[Reason, str] = {
    "too late": "raise devices.deadline_s",
    "dropped out": "lower devices.dropout",
    "not available": "raise devices.online or devices.speed",
}


class Barren:
    """Looks at each round of a run. `counted`: how many replies have counted before, where a run goes on."""

    def __init__(self, counted: int = 0) -> None:
        self.counted = counted
        self.in_a_row = 0  # rounds in which clients have worked and no reply counted
        self.fault: tuple[int, Told] | None = None  # the last one, and its round
        self.lost: Counter[Reason] = Counter()
        self.too_few = ""  # what a rule said of the last round that had too few replies for it

    def look(self, round: int, told: Sequence[Told], lost: Sequence[Lost], counted: int, too_few: str = "") -> None:
        """Takes note of a round, in which `counted` replies counted. Raises WorkerError after MOST_BARREN such rounds
        in a row.

        Only faults end a run before its last round: a device that was late may be in time the next time.
        """
        self.counted += counted
        faults = [one for one in told if one.fault]
        self.fault = (round, faults[0]) if faults else self.fault
        self.lost.update(one.reason for one in lost)
        self.too_few = too_few or self.too_few
        self.in_a_row = self.in_a_row + 1 if faults and not counted else 0
        if self.in_a_row >= MOST_BARREN:
            raise self._error(f"in {self.in_a_row} rounds")

    def require_any(self, rounds: int) -> None:
        """Asked at the end: raises WorkerError if no reply has counted in any round."""
        if not self.counted:
            raise self._error(f"in {rounds} {'round' if rounds == 1 else 'rounds'}")

    def _error(self, where: str) -> WorkerError:
        causes = []
        if self.fault:
            round, told = self.fault
            causes.append(f"client {told.client} in round {round}: {told.fault}")
        if self.too_few:
            causes.append(f"{self.too_few}; raise cohort, or lower strategy.byzantine")
        for reason, count in self.lost.most_common():
            replies = "reply was" if count == 1 else "replies were"
            causes.append(f"{count} {replies} lost ({reason}); {REMEDIES[reason]}")
        error = WorkerError(f"federation: no reply has counted {where}; {'; '.join(causes) or 'no client has worked'}")
        if self.fault and self.fault[1].trace:
            error.add_note(self.fault[1].trace)
        return error
