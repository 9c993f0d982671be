"""How long items take: learned over all runs of a pool, so that the longest begin first."""

from collections.abc import Iterable, Mapping

from core.pool.protocol import K, Key

MEMORY = 0.5  # of an item's earlier times in its moving average


class ItemTimes:
    """The seconds an item takes, by key: a moving average over all runs of a pool."""

    def __init__(self) -> None:
        self._seconds: dict[Key, float] = {}

    def learn(self, key: Key, seconds: float) -> None:
        """Takes in how long an item took this time."""
        self._seconds[key] = MEMORY * self._seconds.get(key, seconds) + (1 - MEMORY) * seconds

    def of(self, key: Key) -> float | None:
        """Seconds, or None where the key has never run."""
        return self._seconds.get(key)

    def longest_first(self, keys: Iterable[K], cost: Mapping[K, float]) -> list[K]:
        """The keys by falling time. `cost` stands in for a time not yet learned, in the unit that the keys with both
        give it, else in seconds; a key with neither counts as the mean. Equal ones keep their order."""
        keys = list(keys)
        guesses = {key: seconds for key in keys if (seconds := self._seconds.get(key)) is not None}
        both = [key for key in guesses if key in cost]
        total = sum(cost[key] for key in both)
        unit = sum(guesses[key] for key in both) / total if total > 0 else 1.0
        guesses = {key: unit * cost[key] for key in keys if key in cost} | guesses
        mean = sum(guesses.values()) / max(1, len(guesses))
        return sorted(keys, key=lambda key: -guesses.get(key, mean))
