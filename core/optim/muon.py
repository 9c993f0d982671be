"""Muon: momentum made orthogonal, for hidden matrices; AdamW for everything else. One optimizer, one state.

Not `torch.optim.Muon`, for three reasons: that one takes 2-d parameters only (no convolutions); it rounds to bfloat16
on every device, which turns the last bit of a gradient sum into a 1e-3 change of the step, so that training on 1 and 2
workers would drift apart; and its fixed polynomial leaves singular values between 0.5 and 1.2.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from core.sharding import sharded_like, whole

# Polar Express (arXiv 2505.16932, algorithm 1): of all compositions of odd quintics these come closest to sign(x) on
# [1e-3, 1]. After six, every singular value that was at least 1e-3 of the norm is within 0.6 % of 1.
_POLYNOMIALS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
)
_SAFETY = 1.01  # the paper's: rounding must not push a singular value past the interval, where the quintics diverge


class MuonOptimizer(torch.optim.Optimizer):
    """Groups with `orthogonal` are stepped by Muon, the others by AdamW (fused where it can be)."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        nesterov: bool = True,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        muon = {"orthogonal": False, "momentum": momentum, "nesterov": nesterov}
        super().__init__(groups, {"lr": lr, "base_lr": lr, "weight_decay": 0.0, "betas": betas, "eps": eps, **muon})
        rest = self._rest_groups()
        fits = all(p.device.type in ("cpu", "cuda") for group in rest for p in group["params"])
        self._adamw = torch.optim.AdamW(rest, fused=True if fits else None) if rest else None

    def _rest_groups(self) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if not group["orthogonal"]]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step on the gradients that are there."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["orthogonal"]:
                self._step_matrices(group)
        if self._adamw is not None:
            # the same groups and state, looked up anew: load_state_dict replaces both
            self._adamw.param_groups, self._adamw.state = self._rest_groups(), self.state
            self._adamw.step()
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        parameters = [p for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        gradients = [p.grad for p in parameters]
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = momenta
        if group["nesterov"]:
            updates = list(torch._foreach_lerp(gradients, momenta, group["momentum"]))
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        for parameter, direction in zip(parameters, _orthogonal_like(updates), strict=True):
            parameter.add_(direction, alpha=-group["lr"] * step_scale(direction.shape))


def step_scale(shape: torch.Size) -> float:
    """Times this, an orthogonal step has RMS 0.2, as AdamW's have, in any shape (arXiv 2502.16982, equation 4)."""
    return 0.2 * math.sqrt(max(shape[0], shape[1:].numel()))


def _orthogonal_like(updates: list[Tensor]) -> list[Tensor]:
    """`orthogonalize` of each update as a matrix [out, rest]; equal shapes go as one batch; sharded as they came."""
    wholes = [whole(u).flatten(1) for u in updates]
    places: dict[torch.Size, list[int]] = defaultdict(list)
    for i, matrix in enumerate(wholes):
        places[matrix.shape].append(i)
    results: list[Tensor] = list(updates)
    for indices in places.values():
        batch = orthogonalize(torch.stack([wholes[i] for i in indices]))
        for i, matrix in zip(indices, batch.unbind(), strict=True):
            results[i] = sharded_like(matrix.view(updates[i].shape), updates[i], is_everywhere=True)
    return results


def orthogonalize(matrices: Tensor) -> Tensor:
    """The nearest matrices with orthonormal rows or columns: U V' of the SVD U S V' of each, [N, rows, columns].

    By six Polar Express iterations in float32, in bfloat16 on CUDA, where speed matters more than the last digits.
    """
    x = matrices.bfloat16() if matrices.device.type == "cuda" else matrices.float()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * _SAFETY + 1e-7)
    for a, b, c in _POLYNOMIALS:
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b / _SAFETY**3, alpha=c / _SAFETY**5)
        x = torch.baddbmm(x, gram, x, beta=a / _SAFETY)
    return (x.mT if tall else x).to(matrices.dtype)
