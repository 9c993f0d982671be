"""What a model must know about the data: shapes and meanings, nothing else. Saved with every model."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Spec:
    """kind: table | image | text; shape of one example's input: (F,), (C, H, W) or (T,); outputs: the number of
    classes, of regression targets, or the vocabulary size; classes: their names in label order, where they have any."""

    kind: Literal["table", "image", "text"]
    shape: tuple[int, ...]
    outputs: int
    target: Literal["class", "real", "token"]
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"shape must hold sizes of at least 1, got {list(self.shape)}")
        if self.outputs < 1:
            raise ValueError(f"outputs must be at least 1, got {self.outputs}")
        if self.classes and len(self.classes) != self.outputs:
            raise ValueError(f"classes must be as many as outputs ({self.outputs}), got {len(self.classes)}")
