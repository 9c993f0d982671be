"""What attacks have in common: who attacks, and what an engine asks of an attack."""

from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from core.data import Data, Preprocess
from core.errors import ConfigError
from core.randomness import numpy_generator


@dataclass(frozen=True)
class Attack:
    """What attacks have in common; by itself it does nothing.

    share: of all clients, that attack, chosen at random. clients: the numbers of those that do, instead.
    """

    kind: str = ""
    share: float = 0.2
    clients: tuple[int, ...] = ()

    is_colluding = False  # whether attackers send what `forge_together` gives

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be between 0 and 1, got {self.share}")
        if any(client < 0 for client in self.clients):
            raise ValueError(f"clients must be 0 or more, got {list(self.clients)}")

    def attackers(self, clients: int, seed: int) -> frozenset[int]:
        """The numbers of the attackers among so many clients: exactly round(share * clients), or those that are named.

        A larger share adds attackers to those of a smaller one.
        """
        return _attackers(self.share, self.clients, clients, seed)

    def is_attacker(self, client: int, clients: int, seed: int) -> bool:
        """Whether this one of so many clients attacks."""
        return client in self.attackers(clients, seed)

    def require(self, preprocess: Preprocess, clients: int) -> None:
        """Raises ConfigError if there is no such client, attackers that collude would be alone, or the attack does not
        go with the data."""
        beyond = [client for client in self.clients if client >= clients]
        if beyond:
            raise ConfigError(f"attack.clients: there is no client {beyond[0]}; they are numbered 0 to {clients - 1}")
        attackers = len(set(self.clients)) or round(self.share * clients)
        if self.is_colluding and attackers == clients:
            raise ConfigError(
                f"attack: all {clients} clients attack, and attackers of kind {self.kind} forge from what honest ones "
                "send; leave some, by attack.share or attack.clients"
            )

    def poison(self, data: Data, *key: int | str) -> Data:
        """What an attacker trains on: the same data with another `train` split. `key` addresses the draws; with the
        same one for every round, the same examples are poisoned."""
        return data

    def forge(self, update: Tensor, *key: int | str) -> Tensor:
        """What an attacker sends in place of its update [D]."""
        return update

    def forge_together(self, known: Tensor, honest: int, attackers: int) -> Tensor:
        """What each of so many attackers sends: [D]. known: the updates [n, D] of the round's `honest` clients, or if
        there is none the attackers' own."""
        raise NotImplementedError(f"attackers of kind {self.kind} do not collude")


@lru_cache(maxsize=8)
def _attackers(share: float, named: tuple[int, ...], clients: int, seed: int) -> frozenset[int]:
    if named:
        return frozenset(named)
    order = numpy_generator(seed, "attackers").permutation(clients)
    return frozenset(order[: round(share * clients)].tolist())
