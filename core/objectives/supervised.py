"""Classification and regression: one target per example."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from core.objectives.smoothing import cross_entropy
from core.task import Batch


@dataclass(frozen=True)
class Classification:
    """Cross entropy of logits [B, C] against class indices [B] or soft classes [B, C]."""

    kind: Literal["classification"] = "classification"
    label_smoothing: float = 0.0

    target: ClassVar[Literal["class"]] = "class"

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """[B]."""
        return cross_entropy(outputs, batch["targets"], batch.get("label_smoothing", self.label_smoothing))

    def weights(self, batch: Batch) -> Tensor:
        """[B]: every example counts once."""
        return batch["weight"].new_ones(batch["weight"].shape)


@dataclass(frozen=True)
class Regression:
    """Squared, absolute or Huber error of values [B, K] against targets [B, K], averaged over K."""

    kind: Literal["regression"] = "regression"
    loss: Literal["mse", "mae", "huber"] = "mse"

    target: ClassVar[Literal["real"]] = "real"

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """[B]."""
        values, targets = outputs.float(), batch["targets"]
        if self.loss == "mse":
            errors = F.mse_loss(values, targets, reduction="none")
        elif self.loss == "mae":
            errors = F.l1_loss(values, targets, reduction="none")
        else:
            errors = F.huber_loss(values, targets, reduction="none")
        return errors.mean(dim=1)

    def weights(self, batch: Batch) -> Tensor:
        """[B]: every example counts once."""
        return batch["weight"].new_ones(batch["weight"].shape)
