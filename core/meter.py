"""The record of a step: loss, learning rate, gradient norm, speed, memory and time left."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from core import health
from core.data import Spec
from core.estimate import peak_flops, step_flops
from core.learner import Learner
from core.recipe import Recipe
from core.runtime import Record, Runtime


class Meter:
    """Reports on rank 0. Speeds are of the steps since the report before, without evaluations and checkpoints between
    them; the first report has none, since its step also warms up.
    """

    def __init__(self, recipe: Recipe, spec: Spec, runtime: Runtime, step: int) -> None:
        self.recipe, self.spec, self.runtime = recipe, spec, runtime
        self.first, self.step, self.time = step + 1, step, time.perf_counter()
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
            "memory_bytes": memory_bytes(self.runtime.device),
            "time": round(time.time(), 3),
        }
        if learner.progress.dropped_examples:
            record["dropped_examples"] = learner.progress.dropped_examples
        if norm is not None:
            record["grad_norm"] = norm.item()
            if train.clip is not None:
                self.clipped += record["grad_norm"] > train.clip
                record["clipped_share"] = self.clipped / self.measured
        if step > self.first:
            record |= self._speeds(steps_per_s, train.steps - step)
        self.runtime.report(record)
        if self.runtime.world == 1 and not self.warned and self.measured % 10 == 1:  # rare: it looks at every layer
            self._warn(health.vanishing(learner))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time spent inside does not count."""
        began = time.perf_counter()
        yield
        self.time += time.perf_counter() - began

    def _speeds(self, steps_per_s: float, left: int) -> Record:
        examples_per_s = steps_per_s * self.recipe.train.batch_size
        speeds = {"examples_per_s": examples_per_s, "eta_s": left / steps_per_s}
        if self.spec.kind == "text":
            speeds["tokens_per_s"] = examples_per_s * self.spec.shape[0]
        if self.peak:
            speeds["mfu"] = self.flops * steps_per_s / self.peak
        return speeds

    def _warn(self, names: list[str]) -> None:
        """Once in a run, of layers that hardly learn."""
        self.warned = bool(names)
        if names:
            some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            message = (
                f"the gradient of {some} vanishes: it hardly learns; look at the depth, the norm or the initial scale"
            )
            self.runtime.report({"event": "warning", "message": message})


class StopWatch:
    """Whether rank 0 was asked to stop, for all ranks at the same step; several look about twice a second."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.next = runtime, 0
        self.step, self.time = 0, time.perf_counter()

    def __call__(self, step: int) -> bool:
        """Asked after every step, on every rank."""
        if self.runtime.world == 1:
            return self.runtime.should_stop()
        if step < self.next:
            return False
        now = time.perf_counter()
        pace = (step - self.step) / (now - self.time)
        self.step, self.time = step, now
        said = [float(self.runtime.should_stop()), max(1.0, pace / 2)] if self.runtime.rank == 0 else [0.0, 0.0]
        asked, ahead = self.runtime.total(torch.tensor(said, device=self.runtime.device)).tolist()
        self.next = step + int(ahead)
        return bool(asked > 0)


def memory_bytes(device: torch.device) -> int:
    """Peak memory: of the device where it has its own, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
