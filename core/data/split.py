"""Which examples train, which choose (validation) and which judge (test): decided by the seed alone."""

import numpy as np
from numpy.typing import NDArray

from core.data.config import Split
from core.errors import DataError
from core.randomness import numpy_generator

Indices = NDArray[np.int64]
NAMES = ("train", "validation", "test")


def split_rows(count: int, split: Split, seed: int, labels: Indices | None = None) -> dict[str, Indices]:
    """Sorted row numbers of train, validation and test; together all of 0..count-1.

    `labels` [count] (class indices) stratify: each class is held out in proportion, and at least one row of every class
    trains. Raises DataError if no row is left to train on.
    """
    sizes = {name: held_out_size(count, getattr(split, name)) for name in ("test", "validation")}
    order = numpy_generator(seed, "split").permutation(count).astype(np.int64)
    keep: Indices = np.empty(0, np.int64)
    if labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]
        first = np.unique(labels[order], return_index=True)[1]
        if count - len(first) >= sum(sizes.values()):
            keep, order = order[first], np.delete(order, first)
    parts = {}
    for name, size in sizes.items():
        if size > len(order):
            raise _nothing_left(count, split)
        # evenly spaced in an order sorted by class: every class gives its share
        picks = ((np.arange(size) + 0.5) * len(order) / max(size, 1)).astype(np.int64)
        parts[name], order = np.sort(order[picks]), np.delete(order, picks)
    parts["train"] = np.sort(np.concatenate([keep, order]))
    if not len(parts["train"]):
        raise _nothing_left(count, split)
    return {name: parts[name] for name in NAMES}


def held_out_size(count: int, share: float) -> int:
    """How many of `count` examples a share is: rounded, but at least one if it is not 0."""
    return max(1, round(count * share)) if share else 0


def _nothing_left(count: int, split: Split) -> DataError:
    return DataError(
        f"data.split: validation {split.validation} and test {split.test} leave none of {count} examples to train on; "
        "lower them or give more data"
    )


def refuse_unseen(splits: dict[str, Indices], labels: Indices, classes: tuple[str, ...], source: str) -> None:
    """Raises DataError if a class is held out that no training example has."""
    seen = np.unique(labels[splits["train"]])
    for name in ("validation", "test"):
        unseen = np.setdiff1d(labels[splits[name]], seen)
        if len(unseen):
            raise DataError(
                f"{source}: class '{classes[unseen[0]]}' is in the {name} split but not in training; "
                "add training examples of it, or remove it"
            )


def split_documents(documents: list[str], split: Split, seed: int) -> dict[str, list[str]]:
    """Whole documents are held out where there are many; of a few, each one's last parts are."""
    if len(documents) >= 20:
        parts = _whole_documents(documents, split, seed)
        if all(parts[name] or not getattr(split, name) for name in ("validation", "test")):
            return parts
    result: dict[str, list[str]] = {name: [] for name in NAMES}
    for text in documents:
        train_end = round(len(text) * (1 - split.validation - split.test))
        test_start = len(text) - round(len(text) * split.test)
        pieces = (text[:train_end], text[train_end:test_start], text[test_start:])
        for name, piece in zip(NAMES, pieces, strict=True):
            if piece:
                result[name].append(piece)
    return result


def _whole_documents(documents: list[str], split: Split, seed: int) -> dict[str, list[str]]:
    total = sum(map(len, documents))
    room = {"test": split.test * total, "validation": split.validation * total}
    chosen: dict[str, list[int]] = {name: [] for name in NAMES}
    for i in numpy_generator(seed, "split").permutation(len(documents)).tolist():
        name = next((name for name, left in room.items() if len(documents[i]) <= left), "train")
        chosen[name].append(i)
        if name != "train":
            room[name] -= len(documents[i])
    return {name: [documents[i] for i in sorted(rows)] for name, rows in chosen.items()}
