"""What robust strategies measure of updates [n, D], block by block of columns; and mixing each with its neighbors.

Distances are sums of squared differences in float64. The shortcut x*x + y*y - 2*x*y loses all digits where updates are
long and close to each other. All D numbers count, those of buffers as well.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 1 << 18  # numbers that are worked on at once: 2 MB in float64, which stay in a processor's cache


def blocks(rows: Tensor) -> tuple[Tensor, ...]:
    """Views [n, C] of rows [n, D], side by side."""
    views: tuple[Tensor, ...] = rows.split(max(1, BLOCK // len(rows)), dim=1)
    return views


def squared_distances(rows: Tensor) -> Tensor:
    """Between all pairs of rows [n, D]: float64 [n, n]."""
    n = len(rows)
    pairs = torch.zeros(n * (n - 1) // 2, dtype=torch.float64)
    for block in blocks(rows):
        pairs += F.pdist(block.double()).square()
    squares = torch.zeros(n, n, dtype=torch.float64)
    above = torch.triu_indices(n, n, offset=1)
    squares[above[0], above[1]] = pairs
    return squares + squares.T


def distances_to(center: Tensor, rows: Tensor) -> Tensor:
    """Of each row [n, D] to the center [D]: float64 [n]."""
    squares = torch.zeros(len(rows), dtype=torch.float64)
    own = center.split(blocks(rows)[0].shape[1])
    for block, part in zip(blocks(rows), own, strict=True):
        squares += (block.double() - part).square().sum(dim=1)
    return squares.sqrt()


def combination(rows: Tensor, shares: Tensor) -> Tensor:
    """The sum of rows [n, D], each times its share [n] (float64): float64 [D]."""
    return torch.cat([shares @ block.double() for block in blocks(rows)])


def by_column(rows: Tensor, rule: Callable[[Tensor], Tensor]) -> Tensor:
    """One number for each column of rows [n, D], float64 [D]. `rule` is given columns [C, n] in rising order."""
    results = []
    for block in blocks(rows):
        columns = np.sort(block.T.contiguous().numpy(), axis=1)  # ten times as fast as torch's
        results.append(rule(torch.from_numpy(columns).double()))
    return torch.cat(results)


def middle(columns: Tensor) -> Tensor:
    """The median [C] of sorted columns [C, n]; of an even number the mean of the two in the middle."""
    n = columns.shape[1]
    return columns[:, (n - 1) // 2 : n // 2 + 1].mean(dim=1)


def mix(rows: Tensor, byzantine: int) -> None:
    """Replaces, in place, each of n rows by the mean of the n - byzantine rows that are nearest to it, itself included.

    Nearest-neighbor mixing (NNM, arXiv 2302.01772, algorithm 2): honest updates come closer to each other, so that a
    rule tells them from others also where clients' data differ.
    """
    near = squared_distances(rows).argsort(dim=1, stable=True)[:, : len(rows) - byzantine]
    shares = torch.zeros(len(rows), len(rows), dtype=torch.float64).scatter_(1, near, 1 / near.shape[1])
    for block in blocks(rows):
        block.copy_(shares @ block.double())
