"""The record of a step: loss, learning rate, gradient norm, speed, memory and time left."""

import resource
import time

import torch
from torch import Tensor

from core import health
from core.data import Spec
from core.estimate import peak_flops, step_flops
from core.learner import Learner
from core.recipe import Recipe
from core.runtime import Runtime


class Meter:
    """Reports on rank 0; speeds are those since the report before, the first one leaves its first step out."""

    def __init__(self, recipe: Recipe, spec: Spec, runtime: Runtime, step: int) -> None:
        self.recipe, self.spec, self.runtime = recipe, spec, runtime
        self.step, self.time = step, time.perf_counter()
        self.measured = self.clipped = 0
        self.warned = False
        peak = peak_flops(runtime.device, recipe.train.precision)
        self.peak = peak * runtime.world if peak else None
        self.flops = step_flops(recipe, spec) if peak else 0.0

    def report(self, loss: Tensor, norm: Tensor | None, learner: Learner) -> None:
        """Sends one record of the step just finished."""
        if self.runtime.rank != 0:
            return
        train, step, now = self.recipe.train, learner.progress.step, time.perf_counter()
        steps_per_s = (step - self.step) / max(now - self.time, 1e-9)
        self.step, self.time = step, now
        self.measured += 1
        record = {
            "step": step,
            "steps": train.steps,
            "split": "train",
            "loss": loss.item(),
            "lr": learner.optimizer.param_groups[0]["lr"],
            "examples_per_s": steps_per_s * train.batch_size,
            "eta_s": (train.steps - step) / steps_per_s,
            "memory_bytes": memory_bytes(self.runtime.device),
            "time": round(time.time(), 3),
        }
        if norm is not None:
            record["grad_norm"] = norm.item()
            if train.clip is not None:
                self.clipped += record["grad_norm"] > train.clip
                record["clipped_share"] = self.clipped / self.measured
        if self.spec.kind == "text":
            record["tokens_per_s"] = steps_per_s * train.batch_size * self.spec.shape[0]
        if self.peak:
            record["mfu"] = self.flops * steps_per_s / self.peak
        self.runtime.report(record)
        if self.runtime.world == 1 and not self.warned and self.measured % 10 == 1:  # rare: it looks at every layer
            self._warn(health.vanishing(learner))

    def _warn(self, names: list[str]) -> None:
        """Once in a run, of layers that hardly learn."""
        self.warned = bool(names)
        if names:
            some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            message = (
                f"the gradient of {some} vanishes: it hardly learns; look at the depth, the norm or the initial scale"
            )
            self.runtime.report({"event": "warning", "message": message})


def memory_bytes(device: torch.device) -> int:
    """Peak memory: of the device where it has its own, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
