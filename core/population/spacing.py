"""How far apart the checkpoints of members are. Small fits take a second or two, which is less than what saving each
of their `checkpoint_every` steps would save; what is lost of one that is killed is a few seconds at most."""

import time

SECONDS = 5.0  # between two checkpoints of a member that trains alone, or of a population


class Spacing:
    """Asks for a pause after the beginning and after each time that it said yes."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def is_over(self) -> bool:
        """Whether the pause is over; if so, the next one begins."""
        now = time.monotonic()
        over = now - self.last >= SECONDS
        if over:
            self.last = now
        return over
