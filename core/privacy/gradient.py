"""One gradient per example, clipped, summed and hidden in noise: for one model, and under vmap for many.

D trainable weights, R examples. Per-example gradients are `vmap(grad)` of the task on batches of one, so they are exact
for every model without batch statistics.
"""

import math
import secrets
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from core.privacy.config import ExamplePrivacy
from core.randomness import generator
from core.task import Batch

Tensors = dict[str, Tensor]
DRAWS = 4  # normal draws whose sum is one noise value: no single floating-point draw shows in it (arXiv:2107.10138)


def clipped_sum(
    task: nn.Module, weights: Tensors, others: Tensors, batch: Batch, clip: Tensor | float
) -> tuple[Tensors, Tensor, Tensor]:
    """(sum of the clipped gradients of all examples, by name of the weight; losses [R], each the example's own mean;
    [R] which examples were dropped).

    An example of weight w counts with the loss w times its mean, so rows of weight 0 have no part in the sum. One whose
    gradient is not finite counts as zero, and its loss too: it cannot be clipped. The losses are taken in the precision
    of the caller's autocast; norms, factors and the sum always in float32, else rounding would break the bound. Where a
    weight is not finite no example is to blame: all losses are NaN.
    """

    def loss(weights: Tensors, example: Batch) -> Tensor:
        one = {name: tensor[None] for name, tensor in example.items()}
        losses, counts = functional_call(task, {**weights, **others}, (one,))
        mean: Tensor = losses[0] / counts[0].clamp(min=1.0) * example["weight"]
        return mean

    gradients, losses = vmap(grad_and_value(loss), in_dims=(None, 0))(weights, batch)
    with torch.autocast(losses.device.type, enabled=False):
        each = {name: gradient.float() for name, gradient in gradients.items()}
        norms = torch.stack([g.flatten(1).square().sum(1) for g in each.values()]).sum(0).sqrt()
        counts = norms.isfinite() & losses.isfinite()
        factors = (clip / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(max=1.0)
        factors = torch.where(counts, factors, 0.0)
        # 0 * NaN is NaN, so what does not count is taken out before the sum too
        sums = {name: torch.tensordot(factors, _only(g, counts), dims=1) for name, g in each.items()}
        losses = torch.where(_are_finite(weights), torch.where(counts, losses.float(), 0.0), torch.nan)
        return sums, losses, ~counts & (batch["weight"] > 0)


def _are_finite(weights: Tensors) -> Tensor:
    return torch.stack([weight.isfinite().all() for weight in weights.values()]).all()


def _only(gradient: Tensor, counts: Tensor) -> Tensor:
    """The gradients [R, ...] of the examples that count, zeros in place of the others."""
    return torch.where(counts.view(-1, *[1] * (gradient.ndim - 1)), gradient, 0.0)


def noise_like(tensor: Tensor, privacy: ExamplePrivacy, *key: int | str) -> Tensor:
    """The noise for the sum of one weight's gradients; seed, step and name, the key, address it only if it is keyed."""
    if not privacy.noise_multiplier:
        return torch.zeros_like(tensor)
    if privacy.noise == "keyed":
        drawn = torch.randn(tensor.shape, generator=generator("privacy", *key))
    else:
        drawn = _secure_normal(tensor.numel()).view(tensor.shape)
    return drawn.to(tensor) * (privacy.noise_multiplier * privacy.clip)


def private_gradient(
    task: nn.Module, named: list[tuple[str, nn.Parameter]], batches: list[Batch], clip: float
) -> tuple[Tensors, Tensor, Tensor]:
    """As `clipped_sum`, of an ordinary model over its micro-batches; losses and dropped [R] of all of them."""
    weights = {name: parameter.detach() for name, parameter in named}
    totals: Tensors = {}
    losses, dropped = [], []
    with plain_attention():
        for batch in batches:
            sums, each, which = clipped_sum(task, weights, {}, batch, clip)
            totals = {name: totals[name] + value if name in totals else value for name, value in sums.items()}
            losses.append(each)
            dropped.append(which)
    return totals, torch.cat(losses), torch.cat(dropped)


def plain_attention() -> AbstractContextManager[Any]:
    """The fused kernels' backward passes have no batching rule; the plain attention is made of products that have."""
    return sdpa_kernel(SDPBackend.MATH)


def _secure_normal(count: int) -> Tensor:
    """Standard normal draws from the operating system's randomness, float32."""
    bits = np.frombuffer(secrets.token_bytes(8 * DRAWS * count), dtype=np.uint64)
    uniform = (torch.from_numpy((bits >> np.uint64(11)).astype(np.float64)) + 0.5) / 2**53  # in (0, 1)
    drawn: Tensor = torch.special.ndtri(uniform)
    return drawn.view(DRAWS, count).sum(0).div(math.sqrt(DRAWS)).float()
