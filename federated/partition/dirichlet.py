"""Label skew by Dirichlet distributions: clients with different mixes of labels."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from core.data import Data
from core.data.split import Indices
from core.randomness import numpy_generator
from federated.partition.deal import by_label, by_shares, check_alpha, even, ranks
from federated.partition.partition import check_counts
from federated.partition.view import present_labels


@dataclass(frozen=True)
class Dirichlet:
    """The smaller alpha, the fewer labels a client has. Real targets have their quantile bins as labels.

    By default each label's examples are split in shares of one draw of Dir(alpha) over the clients (arXiv 2102.02079),
    so sizes differ, too. balanced: all clients have the same size, and each draws examples, without replacement, by a
    label mix of its own (arXiv 1909.06335): Dir(alpha * C * p), p [C] being the labels' shares of all examples. The
    paper's alpha is C times this one.
    """

    kind: Literal["dirichlet"] = "dirichlet"
    alpha: float = 0.5
    balanced: bool = False
    min_size: int = 1

    def __post_init__(self) -> None:
        check_alpha(self.alpha)
        check_counts(min_size=self.min_size)

    def owners(self, data: Data, clients: int, seed: int) -> Indices:
        labels, classes = present_labels(data, self.kind)
        counts, draws = np.bincount(labels), numpy_generator(seed, "partition")
        owner = np.empty(len(labels), np.int64)
        if self.balanced:
            mixes = draws.dirichlet(self.alpha * classes * counts / len(labels), size=clients)
            taken = _drawn(mixes, counts, np.bincount(even(len(labels), clients)), draws)
            owners = np.repeat(np.tile(np.arange(clients), classes), taken.T.ravel())
        else:
            shares = np.full(clients, self.alpha)
            owners = np.concatenate([by_shares(draws.dirichlet(shares), count, draws) for count in counts.tolist()])
        owner[by_label(labels, draws)] = owners
        return owner


def _drawn(mixes: NDArray[np.float64], left: Indices, wanted: Indices, draws: np.random.Generator) -> Indices:
    """[clients, C]: how many examples of each label a client gets: wanted [clients] in all, left [C] being there.

    All clients draw at once; where a label is asked for too often, lots decide, and the losers draw again among the
    labels that are left. At least one label runs out in every turn but the last, so there are at most C turns.
    """
    classes = len(left)
    left, wanted, taken = left.copy(), wanted.copy(), np.zeros(mixes.shape, np.int64)
    while (active := np.flatnonzero(wanted)).size:
        mix = mixes[active] * (left > 0)
        mix[~(mix.sum(axis=1) > 0)] = left  # who knows only labels that ran out takes what there is
        asked = draws.multinomial(wanted[active], mix / mix.sum(axis=1, keepdims=True))
        asks = draws.permutation(np.repeat(np.arange(asked.size), asked.ravel()))
        label = asks % classes
        given = np.bincount(asks[ranks(label) < left[label]], minlength=asked.size).reshape(asked.shape)
        taken[active] += given
        wanted[active] -= given.sum(axis=1)
        left -= given.sum(axis=0)
    return taken
