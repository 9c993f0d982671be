"""Addressed randomness: every draw is a pure function of a key such as (seed, "shuffle", epoch).

Nothing is streamed, so no result depends on the number of workers, the order of completion or a restart.
Dropout masks are plain integer arithmetic on a key per example: equal on every rank and device, and under vmap.
"""

import hashlib
import math
import struct

import numpy as np
import torch
from torch import Tensor

Key = int | str


def seed_of(*key: Key) -> int:
    """A 63-bit seed from the key's parts, equal on every machine and Python version."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*key: Key) -> torch.Generator:
    """A CPU generator addressed by the key."""
    return torch.Generator().manual_seed(seed_of(*key))


def numpy_generator(*key: Key) -> np.random.Generator:
    """A NumPy generator addressed by the key."""
    return np.random.Generator(np.random.Philox(seed_of(*key)))


def example_keys(seed: int, step: int, positions: Tensor) -> Tensor:
    """Noise addresses [B] (int64) of the examples at `positions` [B] of the global batch of `step`."""
    return positions.long() + (seed_of(seed, "noise", step) & 0x3FFF_FFFF_FFFF)


def _mix(x: Tensor) -> Tensor:
    """A 32-bit integer mixer ("lowbias32", Chris Wellons, 2018) on int32 tensors, in place.

    The masks make the shifts logical.
    """
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    x *= 0x7FEB352D
    x ^= (x >> 15).bitwise_and_(0x1FFFF)
    x *= -0x7B935975  # 0x846CA68B as int32
    x ^= (x >> 16).bitwise_and_(0xFFFF)
    return x


def _int32(value: int) -> int:
    return ((value & 0xFFFF_FFFF) ^ 0x8000_0000) - 0x8000_0000


def _hashes(key: Tensor, salt: int, count: int) -> Tensor:
    """Hashes [..., count] (int32) of the keys [...] (int64); a column's hash does not depend on `count`."""
    low = (key & 0x7FFF_FFFF).int()
    high = ((key >> 31) & 0x7FFF_FFFF).int()
    row = _mix(low + _int32(salt * 0x3C6EF372)) ^ _mix(high + _int32(salt * 0x1B873593 + 1))
    # the Weyl constant spreads neighboring columns over the whole range before mixing
    column = torch.arange(count, dtype=torch.int32, device=key.device) * -0x61C88647
    return _mix(row[..., None] + column)


def keep_mask(key: Tensor, salt: int, shape: tuple[int, ...], p: float | Tensor) -> Tensor:
    """Dropout's multipliers: 0 where an element is dropped (probability p), 1 / (1 - p) where it is kept.

    key [B] int64 addresses the examples, `salt` the layer; shape is the activation's shape without the batch. Returns
    [B, *shape] float32. `p` may be a float64 tensor [], as under vmap. Two 16-bit lanes come from each 32-bit hash: p
    is rounded to 1/65536, and the multiplier is exact for the rounded value. It stays with integers because boolean
    tensors cost several times as much on a CPU: this is about five times as fast as `F.dropout` there.
    """
    size = math.prod(shape)
    threshold: int | Tensor
    multiplier: int | Tensor  # a float's bits, as int32
    if isinstance(p, Tensor):
        threshold = (p * 65536).round().clamp(max=65535).int()
        multiplier = (65536 / (65536 - threshold.double())).float().view(torch.int32)
    else:
        threshold = min(round(p * 65536), 65535)
        multiplier = struct.unpack("<i", struct.pack("<f", 65536 / (65536 - threshold)))[0]
    hashes = _hashes(key, salt, (size + 1) // 2)
    lanes = torch.cat([hashes & 0xFFFF, (hashes >> 16).bitwise_and_(0xFFFF)], dim=-1)
    # (threshold - 1 - lane) >> 31 has all bits set where lane >= threshold, else none
    bits = lanes.neg_().add_(threshold - 1).bitwise_right_shift_(31).bitwise_and_(multiplier)
    return bits[..., :size].view(torch.float32).reshape(*key.shape, *shape)


def uniform(key: Tensor, salt: int, count: int) -> Tensor:
    """Draws [B, count] of the keys [B]: float64 in [0, 1), multiples of 2**-32. Draw i does not depend on `count`."""
    return (_hashes(key, salt, count).long() & 0xFFFF_FFFF).double() / 2**32
