"""Causal language modeling: predict the next token; the loss of a step is its mean over all scored tokens."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from core.objectives.smoothing import IGNORED, cross_entropy
from core.task import Batch


@dataclass(frozen=True)
class Language:
    """Cross entropy of token logits [B, T, V] against next tokens [B, T], summed over the tokens of an example."""

    kind: Literal["language"] = "language"
    label_smoothing: float = 0.0

    target: ClassVar[Literal["token"]] = "token"

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {self.label_smoothing}")

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """[B]: the sum over scored tokens."""
        targets = batch["targets"]
        smoothing = batch.get("label_smoothing", self.label_smoothing)
        if isinstance(smoothing, Tensor):
            smoothing = smoothing.repeat_interleave(targets.shape[1])
        return cross_entropy(outputs.flatten(0, 1), targets.flatten(), smoothing).view(targets.shape).sum(dim=1)

    def weights(self, batch: Batch) -> Tensor:
        """[B]: the number of scored tokens."""
        return (batch["targets"] != IGNORED).sum(dim=1).to(batch["weight"].dtype)
