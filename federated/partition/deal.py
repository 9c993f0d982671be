"""Dealing examples out: evenly, by shares, and so that no client is left with too few. All clients at once."""

import math

import numpy as np
from numpy.typing import NDArray

from core.data.split import Indices


def even(count: int, parts: int) -> Indices:
    """[count] ascending: the part of each, where parts differ by one at most."""
    return np.arange(count) * parts // count


def by_shares(shares: NDArray[np.float64], count: int, draws: np.random.Generator) -> Indices:
    """[count] ascending: the part of each, where part i has shares[i] * count in the mean, rounded up or down.

    Systematic sampling: one random offset for all, so that many small shares lose nothing to rounding.
    """
    places = (np.arange(count) + draws.random()) / count
    return np.minimum(np.searchsorted(np.cumsum(shares), places, side="right"), len(shares) - 1)


def by_label(labels: Indices, draws: np.random.Generator) -> Indices:
    """[N]: the positions of all examples, label by label, at random within a label."""
    order = draws.permutation(len(labels))
    return order[np.argsort(labels[order], kind="stable")]


def ranks(groups: Indices) -> Indices:
    """[N]: how many of the same group come before each; groups [N] are 0, 1, ..."""
    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups)
    rank = np.empty(len(groups), np.int64)
    rank[order] = np.arange(len(groups)) - np.repeat(sizes.cumsum() - sizes, sizes)
    return rank


def filled(owner: Indices, clients: int, min_size: int, draws: np.random.Generator) -> Indices:
    """The owners [N], after clients with fewer than `min_size` examples got random ones of the largest clients.

    Those are cut down to one size, or one more. There must be clients * min_size examples.
    """
    missing = np.maximum(min_size - np.bincount(owner, minlength=clients), 0)
    need = int(missing.sum())
    if not need:
        return owner
    # numbered within each client, the examples with the highest numbers are those by which the largest stand out
    order = draws.permutation(len(owner))
    spare = order[np.argsort(-ranks(owner[order]), kind="stable")[:need]]
    owner = owner.copy()
    owner[spare] = np.repeat(np.arange(clients), missing)
    return owner


def check_alpha(alpha: float) -> None:
    """Raises ValueError for what is no parameter of a Dirichlet distribution."""
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be above 0 and finite, got {alpha}")
