"""Adds up what chunks of clients give in one fixed order, whoever finishes first.

Neighbors are merged as soon as both are there, then neighboring pairs, and so on: a fixed binary tree. So the sum is
the same to the last bit for any order of completion, and only a few sums wait at any time.
"""

from federated.exchange import Total

Totals = dict[int, Total]  # by the round they count in


class Folding:
    """Takes totals by their chunk's number, 0 to count - 1, each once."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.waiting: dict[tuple[int, int], Totals] = {}  # by level of the tree and place in it

    def take(self, number: int, totals: Totals) -> None:
        """Takes in a chunk's totals, which must not be used afterwards."""
        level, place, width = 0, number, self.count
        while width > 1:
            if place ^ 1 < width:  # it has a neighbor
                other = self.waiting.pop((level, place ^ 1), None)
                if other is None:
                    break
                totals = _merged(totals, other) if place % 2 == 0 else _merged(other, totals)
            level, place, width = level + 1, place // 2, (width + 1) // 2
        self.waiting[level, place] = totals

    def result(self) -> Totals:
        """All together; every chunk must have been taken."""
        if not self.count:
            return {}
        (totals,) = self.waiting.values()
        return totals


def _merged(left: Totals, right: Totals) -> Totals:
    for round, total in right.items():
        left[round] = left[round].merge(total) if round in left else total
    return left
