"""Which examples train, which choose (validation) and which judge (test): decided by the split's seed alone.

Shares hold out a part. Folds deal the examples out, and each part is the test split once. A bootstrap resamples what
is left to train on. Stratified: all three go class by class, so that every class keeps its share.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from core.data.config import Split
from core.errors import DataError
from core.randomness import numpy_generator

Indices = NDArray[np.int64]
NAMES = ("train", "validation", "test")
MANY = 20  # documents; of fewer, parts are held out
BLOCKS = 20  # in which a document is resampled


def split_rows(count: int, split: Split, seed: int, labels: Indices | None = None) -> dict[str, Indices]:
    """Sorted row numbers of train, validation and test; together all of 0..count-1, but for a bootstrap, each once.

    `seed` is the recipe's, for a split that has none. `labels` [count] (class indices) stratify: each class is held out
    in proportion, and at least one row of every class trains, if there are enough rows. A bootstrap draws as many rows
    of each class as train without it, so it loses no class. Raises DataError if no row is left to train on, or there
    are fewer rows than folds.
    """
    seed = split.seed_or(seed)
    parts = _shares(count, split, seed, labels) if split.folds is None else _fold(count, split, seed, labels)
    if split.bootstrap is not None:
        parts["train"] = _resampled(parts["train"], labels, numpy_generator(seed, "bootstrap", split.bootstrap))
    return parts


def _shares(count: int, split: Split, seed: int, labels: Indices | None) -> dict[str, Indices]:
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


def _fold(count: int, split: Split, seed: int, labels: Indices | None) -> dict[str, Indices]:
    assert split.folds is not None
    if count < split.folds:
        raise DataError(f"data.split.folds: {split.folds} folds of {count} examples; lower it or give more data")
    order = numpy_generator(seed, "folds").permutation(count)
    if labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]
    # dealt like cards in an order sorted by class: the folds' shares of a class differ by one row at most
    test = np.sort(order[split.fold :: split.folds])
    rest = np.delete(np.arange(count), test)
    inner = _shares(len(rest), _without_folds(split), seed, None if labels is None else labels[rest])
    return {"train": rest[inner["train"]], "validation": rest[inner["validation"]], "test": test}


def _without_folds(split: Split) -> Split:
    """How the rest of a fold is split: only validation is taken from it."""
    return replace(split, test=0.0, folds=None, fold=0)


def _resampled(rows: Indices, labels: Indices | None, draws: np.random.Generator) -> Indices:
    classes = np.zeros(len(rows)) if labels is None else labels[rows]
    groups = [rows[classes == c] for c in np.unique(classes)]
    return np.sort(np.concatenate([draws.choice(group, len(group)) for group in groups]))


def held_out_size(count: int, share: float) -> int:
    """How many of `count` examples a share is: rounded, but at least one if it is not 0."""
    return max(1, round(count * share)) if share else 0


def _nothing_left(count: int, split: Split) -> DataError:
    return DataError(
        f"data.split: validation {split.validation} and test {split.test} leave none of {count} examples to train on; "
        "lower them or give more data"
    )


def refuse_lonely(labels: Indices, classes: tuple[str, ...], split: Split, source: str) -> None:
    """Raises DataError if a class of the rows to split has one row only, and folds are to test on every row."""
    lonely = np.flatnonzero(np.bincount(labels) == 1)
    if split.folds is not None and len(lonely):
        raise DataError(
            f"{source}: class '{classes[lonely[0]]}' has one example only, which no fold can both train and test on; "
            "add examples of it, or remove it"
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


# --- documents -----------------------------------------------------------------------------------------------------


def split_documents(documents: list[str], split: Split, seed: int) -> dict[str, list[str]]:
    """Whole documents are held out, or drawn by a bootstrap, where there are many; of a few, parts of each.

    `seed` is the recipe's, for a split that has none. Text before and after a fold stays two documents.
    """
    seed = split.seed_or(seed)
    if split.folds is None:
        parts = _document_shares(documents, split, seed)
    else:
        rest, test = _document_fold(documents, split.folds, split.fold, seed)
        parts = {**_document_shares(rest, _without_folds(split), seed), "test": test}
    if split.bootstrap is not None:
        draws = numpy_generator(seed, "bootstrap", split.bootstrap)
        parts["train"] = _resampled_documents(parts["train"], draws)
    return parts


def _document_shares(documents: list[str], split: Split, seed: int) -> dict[str, list[str]]:
    if len(documents) >= MANY:
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


def _document_fold(documents: list[str], folds: int, fold: int, seed: int) -> tuple[list[str], list[str]]:
    """What is in the other folds, and what is in this one."""
    places = _dealt(documents, folds, seed)
    if places is not None:
        pairs = list(zip(documents, places, strict=True))
        return [text for text, place in pairs if place != fold], [text for text, place in pairs if place == fold]
    rest, test = [], []
    for text in documents:
        start, end = (round(i * len(text) / folds) for i in (fold, fold + 1))
        rest += [piece for piece in (text[:start], text[end:]) if piece]
        test += [text[start:end]] if end > start else []
    return rest, test


def _dealt(documents: list[str], folds: int, seed: int) -> list[int] | None:
    """The fold of each document; None if they are too few, or too unequal, for folds of similar size.

    In random order, each goes to the fold that holds the least text so far.
    """
    filled, places = [0] * folds, [0] * len(documents)
    for i in numpy_generator(seed, "folds").permutation(len(documents)).tolist():
        places[i] = filled.index(min(filled))
        filled[places[i]] += len(documents[i])
    is_even = min(filled) > 0 and max(filled) <= 2 * sum(filled) / folds
    return places if len(documents) >= MANY and is_even else None


def _resampled_documents(documents: list[str], draws: np.random.Generator) -> list[str]:
    if len(documents) >= MANY:
        return [documents[i] for i in np.sort(draws.integers(len(documents), size=len(documents)))]
    return [_moving_blocks(text, draws) for text in documents]


def _moving_blocks(text: str, draws: np.random.Generator) -> str:
    """As much text, in blocks that begin anywhere in it: neighbors stay together (Kunsch, Ann. Statist. 17, 1989)."""
    length = -(-len(text) // BLOCKS)
    starts = draws.integers(len(text) - length + 1, size=BLOCKS).tolist()
    return "".join(text[start : start + length] for start in starts)[: len(text)]
