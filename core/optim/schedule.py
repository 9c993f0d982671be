"""Learning rate schedules: pure functions of the step, so that a resumed run needs no schedule state.

All warm up linearly over `warmup` steps, the first of which already moves the weights. `factor(step, steps)` is what
the base rate is multiplied by at 0-based `step` of `steps`; decays come to `final` at step `steps`, just past the end.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from core.errors import ConfigError


@dataclass(frozen=True)
class Constant:
    """`level` times the base rate, after the warmup."""

    kind: Literal["constant"] = "constant"
    warmup: int = 0
    level: float = 1.0

    def __post_init__(self) -> None:
        _check(self.warmup)
        if not 0 <= self.level <= 1:
            raise ValueError(f"level must be in [0, 1], a fraction of the base rate, got {self.level}")

    def factor(self, step: int, steps: int) -> float:
        """In [0, 1]. ConfigError if the warmup is longer than the run."""
        warm, _ = _progress(step, steps, self.warmup)
        return self.level * warm


@dataclass(frozen=True)
class Linear:
    """A straight line from the base rate down to `final` of it."""

    kind: Literal["linear"] = "linear"
    warmup: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        _check(self.warmup, self.final)

    def factor(self, step: int, steps: int) -> float:
        """In (0, 1]. ConfigError if the warmup is longer than the run."""
        warm, decay = _progress(step, steps, self.warmup)
        return warm if warm < 1 else 1 - (1 - self.final) * decay


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from the base rate down to `final` of it (arXiv 1608.03983, without restarts)."""

    kind: Literal["cosine"] = "cosine"
    warmup: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        _check(self.warmup, self.final)

    def factor(self, step: int, steps: int) -> float:
        """In (0, 1]. ConfigError if the warmup is longer than the run."""
        warm, decay = _progress(step, steps, self.warmup)
        return warm if warm < 1 else self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * decay))


@dataclass(frozen=True)
class WarmupStableDecay:
    """The base rate, then 1 - sqrt down to `final` of it over the last `decay` of the run (arXiv 2405.18392)."""

    kind: Literal["wsd"] = "wsd"
    warmup: int = 0
    decay: float = 0.2
    final: float = 0.0

    def __post_init__(self) -> None:
        _check(self.warmup, self.final)
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay must be in (0, 1], a fraction of all steps, got {self.decay}")

    def factor(self, step: int, steps: int) -> float:
        """In (0, 1]. ConfigError if warmup and decay together are longer than the run."""
        start = steps - round(self.decay * steps)
        if self.warmup > start:
            raise ConfigError(
                f"schedule.warmup: {self.warmup} steps and a decay of {steps - start} do not fit in train.steps "
                f"{steps}; lower schedule.warmup to at most {start}, or schedule.decay"
            )
        warm, _ = _progress(step, steps, self.warmup)
        if step < start:
            return warm
        progress = min(1.0, (step - start) / max(1, steps - start))
        return self.final + (1 - self.final) * (1 - math.sqrt(progress))


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Gives every param group `factor` times its base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def _progress(step: int, steps: int, warmup: int) -> tuple[float, float]:
    """(how far the warmup has come, in (0, 1]; how far the time after it has, in [0, 1])."""
    if warmup > steps:
        raise ConfigError(
            f"schedule.warmup: {warmup} steps do not fit in train.steps {steps}; lower schedule.warmup or train longer"
        )
    if step < warmup:
        return (step + 1) / warmup, 0.0
    return 1.0, min(1.0, (step - warmup) / max(1, steps - warmup))


def _check(warmup: int, final: float = 0.0) -> None:
    if warmup < 0:
        raise ValueError(f"warmup must be 0 steps or more, got {warmup}")
    if not 0 <= final <= 1:
        raise ValueError(f"final must be in [0, 1], a fraction of the base rate, got {final}")
