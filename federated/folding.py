"""Adds up what chunks of clients give in one fixed order, whoever finishes first: a tree of totals."""

from core import ordered
from federated.exchange import Total

Totals = dict[int, Total]  # by the round they count in


class Folding(ordered.Folding[Totals]):
    """Takes the totals of `count` chunks by their numbers."""

    def __init__(self, count: int) -> None:
        super().__init__(count, _merged)

    def result(self) -> Totals:
        """All together, none of no chunks; every chunk must have been taken."""
        return super().result() if self.count else {}


def _merged(left: Totals, right: Totals) -> Totals:
    for round, total in right.items():
        left[round] = left[round].merge(total) if round in left else total
    return left
