"""Augmentation of a batch, one draw per example, all examples at once.

Every draw is addressed by (seed, step, position in the global batch): how ranks share the batch does not matter.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from core.data.config import Augment
from core.randomness import numpy_generator, seed_of, uniform

# what a draw is for; different salts of one key are independent
_SHIFT, _FLIP, _CUT, _NOISE, _DROP, _REPLACE = range(6)


@dataclass(frozen=True)
class Augmentation:
    """images: what is done to images, black [C, 1, 1] being what crop moves in; token_drop and tokens [N]: to texts."""

    images: Augment = field(default_factory=Augment)
    black: Tensor | None = None
    token_drop: float = 0.0
    tokens: Tensor | None = None
    classes: int | None = None

    @property
    def is_active(self) -> bool:
        """Whether anything is changed at all."""
        return self.images != Augment() or self.token_drop > 0

    def __call__(self, inputs: Tensor, key: Tensor) -> Tensor:
        """New inputs [B, ...], changed by the draws of `key` [B] (int64)."""
        if self.token_drop:
            assert self.tokens is not None
            return drop_tokens(inputs, key, self.token_drop, self.tokens)
        if self.images.crop or self.images.flip:
            assert self.black is not None
            inputs = shift_and_flip(inputs, key, self.images, self.black)
        if self.images.noise:
            inputs = inputs + self.images.noise * normal(key, inputs.shape[1:])
        return cut_out(inputs, key, self.images.cutout) if self.images.cutout else inputs

    def mix_targets(self, targets: Tensor, partners: Tensor, share: Tensor) -> Tensor:
        """Soft classes [B, C], or values [B, K], blended like the inputs; share [B] is the first one's."""
        if self.classes is not None:
            targets, partners = (F.one_hot(t, self.classes).to(share.dtype) for t in (targets, partners))
        return blend(targets, partners, share)


def keys(seed: int, step: int, positions: Tensor) -> Tensor:
    """[B] int64: the address of each example's draws in this step."""
    return positions + (seed_of(seed, "augment", step) & 0x3FFF_FFFF_FFFF)


def mixing(seed: int, step: int, count: int, alpha: float) -> tuple[Tensor, Tensor]:
    """Mixup's partner of each of the `count` examples of the global batch, and the share [count] it keeps of itself."""
    draws = numpy_generator(seed, "mixup", step)
    partner, share = draws.permutation(count), draws.beta(alpha, alpha, count)
    return torch.from_numpy(partner).long(), torch.from_numpy(share).float()


def blend(own: Tensor, partners: Tensor, share: Tensor) -> Tensor:
    """The weighted mean share * own + (1 - share) * partners, share [B] being one number per example."""
    share = share.view(-1, *[1] * (own.dim() - 1))
    return share * own + (1 - share) * partners


def shift_and_flip(images: Tensor, key: Tensor, config: Augment, black: Tensor) -> Tensor:
    """Moves [B, C, H, W] by up to `crop` pixels in each direction, mirrors half of them if `flip` is set."""
    batch, channels, height, width = images.shape
    shift = (uniform(key, _SHIFT, 2) * (2 * config.crop + 1)).long() - config.crop
    rows = torch.arange(height) + shift[:, :1]
    columns = torch.arange(width) + shift[:, 1:]
    if config.flip:
        columns = torch.where(uniform(key, _FLIP, 1) < 0.5, width - 1 - columns, columns)
    source = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    index = source.view(batch, 1, -1).expand(-1, channels, -1)
    moved = images.flatten(2).gather(2, index).view_as(images)
    seen = _within(rows, height)[:, :, None] & _within(columns, width)[:, None, :]
    return torch.where(seen[:, None], moved, black)


def _within(index: Tensor, size: int) -> Tensor:
    return (index >= 0) & (index < size)


def cut_out(images: Tensor, key: Tensor, side: int) -> Tensor:
    """Sets a square of `side` pixels to 0, the mean; its center lies anywhere in the image (arXiv 1708.04552)."""
    height, width = images.shape[2:]
    u = uniform(key, _CUT, 2)
    top = (u[:, :1] * height).long() - side // 2
    left = (u[:, 1:] * width).long() - side // 2
    rows, columns = _within(torch.arange(height) - top, side), _within(torch.arange(width) - left, side)
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def normal(key: Tensor, shape: torch.Size) -> Tensor:
    """Standard normal draws [B, *shape] float32, by Box and Muller (1958).

    In float64 to the end: the last bit of a logarithm or cosine may depend on where in memory its argument lies.
    """
    count = math.prod(shape)
    half = (count + 1) // 2
    u = uniform(key, _NOISE, 2 * half)
    radius = (-2 * (1 - u[:, :half]).log()).sqrt()  # 1 - u is never 0 in float64
    angle = 2 * math.pi * u[:, half:]
    draws = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1).float()
    return draws[:, :count].view(len(key), *shape)


def drop_tokens(inputs: Tensor, key: Tensor, share: float, tokens: Tensor) -> Tensor:
    """Replaces a share of inputs [B, T] by tokens from random places of the training text (arXiv 1703.02573)."""
    count = inputs.shape[1]
    places = (uniform(key, _REPLACE, count) * len(tokens)).long()
    return torch.where(uniform(key, _DROP, count) < share, tokens[places].long(), inputs)
