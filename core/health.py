"""Gradient health: what a training step looks at so that a run that goes wrong says where it went wrong."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import WorkerError
from core.learner import Learner
from core.runtime import Runtime
from core.sharding import local
from core.task import Batch, split

# A layer whose gradient is this much smaller than the largest layer's, per weight, hardly learns (our choice).
VANISHING = 1e-7
WAY_OUT = "lower optimizer.lr or set train.clip; no checkpoint holds such weights"


def require_finite(learner: Learner, batch: Batch, loss: Tensor, norm: Tensor | None, parts: int = 1) -> None:
    """Raises WorkerError that names the first layer with NaN or infinity, if the loss or the gradient norm has one.

    With a loss scaler an infinite norm is not an error: the scaler leaves that step out by itself.
    """
    if math.isfinite(loss.item()) and (norm is None or learner.precision.scaler or math.isfinite(norm.item())):
        return
    step, where = learner.progress.step + 1, first_not_finite(learner, batch, parts)
    raise WorkerError(
        f"training: the loss or its gradient is not finite at step {step} (loss {loss.item():.4g}), first in {where}; "
        f"{WAY_OUT}"
    )


def require_finite_weights(learner: Learner, runtime: Runtime) -> None:
    """Raises WorkerError, on all ranks alike, if a weight is NaN or infinite: such a state must not be saved."""
    names = [name for name, p in learner.task.network.named_parameters() if not _finite(local(p))]
    if runtime.any(bool(names)):
        where = names[0] if names else "the part of another worker"
        raise WorkerError(f"training: weights are not finite after step {learner.progress.step}, in {where}; {WAY_OUT}")


def first_not_finite(learner: Learner, batch: Batch, parts: int = 1) -> str:
    """The first place, along the forward pass, that holds NaN or infinity: input, weights, outputs, then gradients.

    Every rank makes the same passes, whatever it finds, because a sharded one takes all of them.
    """
    found: list[str] = []
    if batch["inputs"].is_floating_point() and not _finite(batch["inputs"]):
        found.append("the input")
    hooks = []
    for name, module in learner.task.network.named_modules():
        if not list(module.children()):
            hooks.append(module.register_forward_hook(_watch(name or "network", found)))
    try:
        with torch.no_grad(), learner.precision.autocast():
            for micro in split(batch, parts):
                learner.task(micro)
    finally:
        for hook in hooks:
            hook.remove()
    for name, parameter in learner.task.network.named_parameters():
        if not found and parameter.grad is not None and not _finite(local(parameter.grad)):
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
            if not _finite(local(parameter)):
                found.append(f"the weights {name}.{parameter_name}")
                return
        outputs = output if isinstance(output, tuple) else (output,)
        if any(isinstance(t, Tensor) and not _finite(t) for t in outputs):
            found.append(f"the output of layer {name}")

    return hook
