"""Where the data comes from and how it is prepared: one config per kind of data.

The union `DataConfig` is the registry. A path is a file, a folder, or `bundled:NAME` for data that is on every machine.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

# Of a learned vocabulary; the largest in use have a quarter of it. The library takes memory for all of them at once.
MOST_TOKENS = 1_000_000


@dataclass(frozen=True)
class Split:
    """The shares of the examples that are held out; files that bring their own test set keep that one instead.

    seed: decides which examples are held out; null is the recipe's seed. folds: cuts the examples into so many parts,
    of which number `fold` is the test split and `test` is ignored; files with a test set of their own then do without
    it. bootstrap: trains on a resample, with replacement, of the training split; the number says on which one.
    """

    validation: float = 0.1
    test: float = 0.1
    seed: int | None = None
    folds: int | None = None
    fold: int = 0
    bootstrap: int | None = None

    def __post_init__(self) -> None:
        for name in ("validation", "test"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.folds is None and self.validation + self.test >= 1:
            raise ValueError(
                f"validation and test must leave something to train on, got {self.validation + self.test} together"
            )
        if self.folds is not None and self.folds < 2:
            raise ValueError(f"folds must be at least 2, got {self.folds}; null turns cross-validation off")
        if self.folds is None and self.fold:
            raise ValueError(f"fold must be 0 where folds is not set, got {self.fold}; set folds too")
        if self.folds is not None and not 0 <= self.fold < self.folds:
            raise ValueError(f"fold must be at least 0 and below folds ({self.folds}), got {self.fold}")
        if self.bootstrap is not None and self.bootstrap < 0:
            raise ValueError(f"bootstrap must be 0 or more, got {self.bootstrap}; null trains on the split as it is")

    def seed_or(self, recipe_seed: int) -> int:
        """The seed that decides the split."""
        return recipe_seed if self.seed is None else self.seed


@dataclass(frozen=True)
class Augment:
    """Random changes of training images.

    crop: shift by up to so many pixels; flip: left and right, half of the time; noise: standard deviation of Gaussian
    noise on the normalized image; cutout: side of an erased square (arXiv 1708.04552); mixup: alpha of the Beta
    distribution that blends pairs of the global batch (arXiv 1710.09412). 0 turns each off.
    """

    crop: int = 0
    flip: bool = False
    noise: float = 0.0
    cutout: int = 0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        for name in ("crop", "noise", "cutout", "mixup"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 (off) or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class Byte:
    """One token per byte of the UTF-8 text, and one for the end of a document."""

    kind: Literal["byte"] = "byte"


@dataclass(frozen=True)
class BPE:
    """Byte pair encoding of at most `vocab` tokens, learned on the training split (arXiv 1508.07909)."""

    kind: Literal["bpe"] = "bpe"
    vocab: int = 1024

    def __post_init__(self) -> None:
        if self.vocab < 257:
            raise ValueError(f"vocab must be at least 257 (every byte, and the end of a document), got {self.vocab}")
        if self.vocab > MOST_TOKENS:
            raise ValueError(f"vocab must be at most {MOST_TOKENS:,}, got {self.vocab:,}")


TokenizerConfig = Byte | BPE


@dataclass(frozen=True)
class Numbers:
    """How numbers are written: the decimal mark, and what may stand between groups of three digits."""

    decimal: Literal[".", ","] = "."
    thousands: Literal["", ".", ",", " ", "'", "_"] = ""

    def __post_init__(self) -> None:
        if self.decimal == self.thousands:
            raise ValueError(f"decimal and thousands must differ, got {self.decimal!r} for both")


@dataclass(frozen=True)
class Table:
    """Rows of a csv, tsv, parquet, jsonl, npz or npy file.

    target: the column to predict; null is the last one. columns: those to predict from; null is all others but those in
    `drop`. categorical: columns that are texts even if they look like numbers. id: a column that names the rows, in
    answers, and is no input. weight: a column of example weights.
    header: false names the columns of a csv f0, f1, ... delimiter and numbers: what stands between a csv's cells, and
    how its numbers are written; null recognizes both. Texts become one input per value (one_hot) or a code in [0, 1]
    (integer). Empty and NaN cells are refused, or filled with the training mean. normalize: numbers, and real targets,
    get mean 0 and variance 1 over the training split.
    """

    kind: Literal["table"] = "table"
    path: str = "bundled:breast_cancer"
    target: str | None = None
    columns: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    id: str | None = None
    weight: str | None = None
    header: bool = True
    delimiter: str | None = None
    numbers: Numbers | None = None
    categories: Literal["one_hot", "integer"] = "one_hot"
    missing: Literal["refuse", "mean"] = "refuse"
    normalize: bool = True
    split: Split = field(default_factory=Split)

    def __post_init__(self) -> None:
        if self.columns is not None and not self.columns:
            raise ValueError("columns must name at least one column; null takes all")
        if self.columns is not None and len(set(self.columns)) < len(self.columns):
            raise ValueError(f"columns must not name a column twice, got {list(self.columns)}")
        if self.id is not None and self.id in (self.target, *(self.columns or ())):
            raise ValueError(f"id must name a column that is neither target nor input, got {self.id!r}")
        if both := set(self.columns or ()) & set(self.drop):
            raise ValueError(f"drop must not name what columns names, got {sorted(both)} in both")
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise ValueError(f"delimiter must be one character between cells, got {self.delimiter!r}")


@dataclass(frozen=True)
class Image:
    """Images: MNIST IDX or CIFAR binary files, npz, npy, or a folder with one subfolder per class.

    size: (height, width) that every image is resized to; null takes them as they are. background: the color [red,
    green, blue] that shows where a picture is transparent. Images of more than memory_mb are read from the folder batch
    by batch. normalize: each channel gets mean 0 and variance 1 over the training split.
    """

    kind: Literal["image"] = "image"
    path: str = "bundled:digits"
    size: tuple[int, int] | None = None
    background: tuple[int, int, int] = (255, 255, 255)
    normalize: bool = True
    augment: Augment = field(default_factory=Augment)
    memory_mb: int = 1024
    split: Split = field(default_factory=Split)

    def __post_init__(self) -> None:
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size must be a height and a width of at least 1, got {list(self.size)}")
        if not all(0 <= value <= 255 for value in self.background):
            raise ValueError(f"background must be red, green and blue of 0 to 255, got {list(self.background)}")
        if self.memory_mb < 0:
            raise ValueError(f"memory_mb must be 0 (nothing is kept in memory) or more, got {self.memory_mb}")


@dataclass(frozen=True)
class Text:
    """Text to predict token by token: a txt file, a jsonl file with the key `text`, or a folder of txt files.

    context: tokens of one example. token_drop: the share of input tokens replaced by draws from the training text
    (unigram noising, arXiv 1703.02573). limit_bytes: how much of the text is read; null is all of it.
    """

    kind: Literal["text"] = "text"
    path: str = "bundled:english"
    context: int = 128
    tokenizer: TokenizerConfig = field(default_factory=Byte)
    token_drop: float = 0.0
    limit_bytes: int | None = None
    split: Split = field(default_factory=Split)

    def __post_init__(self) -> None:
        if self.context < 1:
            raise ValueError(f"context must be at least 1, got {self.context}")
        if not 0 <= self.token_drop < 1:
            raise ValueError(f"token_drop must be in [0, 1), got {self.token_drop}")
        if self.limit_bytes is not None and self.limit_bytes < 1:
            raise ValueError(f"limit_bytes must be at least 1, got {self.limit_bytes}; null reads everything")


DataConfig = Table | Image | Text
