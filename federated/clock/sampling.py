"""Which clients a round asks: uniform, without replacement, a pure function of (seed, round) and of who is available.

Its cost grows with the number that is asked for and not with the population, so that a million clients cost nothing.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError
from core.randomness import Key, numpy_generator

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]
WIDER = 4  # times as many candidates where too few of them were available


def cohort(
    seed: int, round: int, clients: int, count: int, available: Callable[[Ids], Mask] | None = None
) -> tuple[int, ...]:
    """The `count` clients of a round, out of 0..clients-1, in random order; fewer if fewer are available.

    available: which of the candidates [n] can take part, as a mask [n]; None: all of them. Raises ConfigError if there
    are fewer clients than that in all.
    """
    if count > clients:
        raise ConfigError(f"cohort: {count} clients a round, but there are {clients} in all; lower it")
    return draw(clients, count, available, seed, "cohort", round)


def draw(clients: int, count: int, available: Callable[[Ids], Mask] | None, *key: Key) -> tuple[int, ...]:
    """Up to `count` different clients that are available, in random order; `key` addresses the draw.

    Candidates are drawn afresh, more of them each time, until enough are available; at last everyone is one. No client
    is treated otherwise than another, so every set of available ones is equally likely.
    """
    draws, size = numpy_generator(*key), min(clients, count)
    while True:
        # Floyd's method, O(size), below a fiftieth of the clients; a shuffle of all above that
        ids = draws.choice(clients, size, replace=False).astype(np.int64)
        able = ids if available is None else ids[available(ids)]
        if len(able) >= count or size == clients:
            return tuple(able[:count].tolist())
        size = min(clients, size * WIDER)
