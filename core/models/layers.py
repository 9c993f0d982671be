"""Parts that the families of the zoo share: addressed dropout, activations, norms, position tables.

Shapes: B examples, T tokens, C channels, D features of an attention head.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.randomness import keep_mask

Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "tanh"]
Norm2d = Literal["group", "batch", "none"]
Norm1d = Literal["layernorm", "rmsnorm"]


class Dropout(nn.Module):
    """Dropout whose noise is a function of each example's key, so it does not depend on workers, batches or restarts.

    `salt` tells the dropout layers of a network apart; whoever owns the network numbers them. `p` may be a tensor [],
    so that vmap can give every member of a population its own.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p: float | Tensor = p
        self.salt = 0

    def forward(self, x: Tensor, key: Tensor | None = None) -> Tensor:
        """Inputs x [B, ...] with key [B] int64; without a key the identity."""
        if key is None or (not isinstance(self.p, Tensor) and self.p == 0):
            return x
        return x * keep_mask(key, self.salt, tuple(x.shape[1:]), self.p).to(x.dtype)

    def extra_repr(self) -> str:
        return f"p={self.p}, salt={self.salt}"


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GELU that GPT-2 was trained with (arXiv:1606.08415)."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": gelu_tanh,
    "silu": F.silu,
    "tanh": torch.tanh,
}


def norm_2d(kind: Norm2d, channels: int) -> nn.Module:
    """A norm for [B, C, H, W]. Group norm (arXiv:1803.08494) has 8 groups where 8 divides the channels, else fewer."""
    if kind == "group":
        return nn.GroupNorm(math.gcd(channels, 8), channels)
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.Identity()


def norm_1d(kind: Norm1d, width: int, eps: float, bias: bool) -> nn.Module:
    """A norm over the last dimension; RMSNorm (arXiv:1910.07467) has no bias."""
    return nn.LayerNorm(width, eps, bias=bias) if kind == "layernorm" else nn.RMSNorm(width, eps)


# --- positions -----------------------------------------------------------------------------------------------------


def rotary_table(positions: Tensor, size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines [*positions.shape, D] in float32 for `rotate` (RoPE, arXiv:2104.09864), D = `size`.

    The halves of a head are paired (i with i + D/2), as in Llama. The sines of the first half are negated: that is the
    sign that the rotation of a pair needs.
    """
    exponents = torch.arange(0, size, 2, dtype=torch.float32, device=positions.device) / size
    angles = positions[..., None].float() * (1.0 / theta**exponents)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Heads x [B, T, heads, D], turned by the cosines and signed sines [T, 1, D] or [B, T, 1, D]."""
    cos, sin = table[0].to(x.dtype), table[1].to(x.dtype)
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """The fixed position code [*positions.shape, width] of arXiv:1706.03762, sines first, then cosines."""
    half = (width + 1) // 2
    exponents = torch.arange(half, dtype=torch.float32, device=positions.device) / half
    angles = positions[..., None].float() * 10000.0**-exponents
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[..., :width]
