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
