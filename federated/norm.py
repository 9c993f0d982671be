"""The length of an update, as exact as float64 and fast: servers take it of every reply."""

import math

import torch
from torch import Tensor

BLOCK = 1024  # numbers whose squares are summed in float32: their sum is right to 1e-6
SMALLEST = 1e-12
FEW = 32 * BLOCK  # up to which one call in float64 is as fast


def l2_norm(vector: Tensor) -> float:
    """The L2 norm of a float32 tensor: blocks in float32, the blocks' norms in float64 (relative error below 1e-6).
    Where squares may be too large or too small for float32, all of it in float64."""
    flat = vector.reshape(-1)
    whole = len(flat) // BLOCK * BLOCK if len(flat) > FEW else 0
    if whole:
        blocks = torch.linalg.vector_norm(flat[:whole].view(-1, BLOCK), dim=1)
        found = _exact(torch.cat([blocks, flat[whole:]]))
        if SMALLEST < found < math.inf:
            return found
    return _exact(flat)


def _exact(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))
