"""Mixed precision: an autocast region for the forward pass and, for fp16, the scaling of its loss."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from core.errors import ConfigError


@dataclass(frozen=True)
class Precision:
    """fp32 does nothing; bf16 autocasts; fp16 autocasts and scales the loss so that small gradients survive."""

    device: str = "cpu"
    dtype: torch.dtype | None = None
    scaler: torch.amp.GradScaler | None = None

    @classmethod
    def of(cls, name: Literal["fp32", "bf16", "fp16"], device: torch.device) -> "Precision":
        """Raises ConfigError for fp16 away from CUDA, where gradients would only lose digits."""
        if name == "fp16" and device.type != "cuda":
            raise ConfigError(
                f"train.precision: fp16 needs a CUDA device, this run is on {device.type}; use bf16 or fp32"
            )
        dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
        return cls(device.type, dtype, torch.amp.GradScaler() if name == "fp16" else None)

    def autocast(self) -> AbstractContextManager[Any]:
        """The region of a forward pass."""
        return torch.autocast(self.device, self.dtype) if self.dtype else nullcontext()

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to differentiate."""
        return self.scaler.scale(loss) if self.scaler else loss

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Makes the gradients true to size, before they are measured or clipped."""
        if self.scaler:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Steps; an fp16 step whose gradients overflowed is left out and the scale lowered."""
        if self.scaler:
            self.scaler.step(optimizer)
            self.scaler.update()
        else:
            optimizer.step()


FULL = Precision()
