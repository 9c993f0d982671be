"""Gradient health: what a training step looks at so that a run that goes wrong says where it went wrong."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import WorkerError
from core.learner import Learner
from core.task import Batch

# A layer whose gradient is this much smaller than the largest layer's, per weight, hardly learns (our choice).
VANISHING = 1e-7


def require_finite(learner: Learner, batch: Batch, loss: Tensor, norm: Tensor | None) -> None:
    """Raises WorkerError that names the first layer with NaN or infinity, if the loss or the gradient norm has one.

    With a loss scaler an infinite norm is not an error: the scaler leaves that step out by itself.
    """
    if math.isfinite(loss.item()) and (norm is None or learner.precision.scaler or math.isfinite(norm.item())):
        return
    step, where = learner.progress.step + 1, first_not_finite(learner, batch)
    raise WorkerError(
        f"training: the loss or its gradient is not finite at step {step} (loss {loss.item():.4g}), first in {where}; "
        f"lower optimizer.lr or set train.clip; the last good checkpoint is kept"
    )


def first_not_finite(learner: Learner, batch: Batch) -> str:
    """The first place, along the forward pass, that holds NaN or infinity: input, weights, outputs, then gradients."""
    if batch["inputs"].is_floating_point() and not _finite(batch["inputs"]):
        return "the input"
    found: list[str] = []
    hooks = []
    for name, module in learner.task.network.named_modules():
        if not list(module.children()):
            hooks.append(module.register_forward_hook(_watch(name or "network", found)))
    try:
        with torch.no_grad():
            learner.task(batch)
    finally:
        for hook in hooks:
            hook.remove()
    for name, parameter in learner.task.network.named_parameters():
        if not found and parameter.grad is not None and not _finite(parameter.grad):
            found.append(f"the gradient of {name}")
    return found[0] if found else "the loss"


def vanishing(learner: Learner) -> list[str]:
    """The parameters whose gradient is next to nothing beside the largest, per weight."""
    sizes = {
        name: p.grad.norm().item() / math.sqrt(p.grad.numel())
        for name, p in learner.task.network.named_parameters()
        if p.grad is not None
    }
    top = max(sizes.values(), default=0.0)
    return [name for name, size in sizes.items() if size < VANISHING * top]


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _watch(name: str, found: list[str]) -> Any:
    def hook(module: nn.Module, _: Any, output: Any) -> None:
        if found:
            return
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if not _finite(parameter):
                found.append(f"the weights {name}.{parameter_name}")
                return
        outputs = output if isinstance(output, tuple) else (output,)
        if any(isinstance(t, Tensor) and not _finite(t) for t in outputs):
            found.append(f"the output of layer {name}")

    return hook
