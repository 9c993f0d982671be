"""Classes: a class has the text that it has in the file, from reading to the answers."""

import re
from collections.abc import Hashable, Sequence

import numpy as np

from core.data.sources.files import nearest
from core.data.sources.frame import Texts
from core.data.sources.notation import plain_numbers
from core.data.split import Indices
from core.errors import DataError

_WHOLE = re.compile(r"[+-]?\d+")


def class_labels(
    labels: Texts, name: str, source: str, classes: tuple[str, ...] = ()
) -> tuple[Indices, tuple[str, ...]]:
    """Class indices [N] and the classes: `classes`, or the texts; numbers in their order, others in alphabetical order.

    Raises DataError for an empty cell, values that are no classes, fewer than two classes or about one a row.
    """
    refuse_empty(labels, name, source)
    numbers = plain_numbers(labels.distinct)
    if numbers is not None and (odd := numbers != np.floor(numbers)).any():
        row = int(odd[labels.places].argmax())
        raise DataError(
            f"{source}: row {row + 1}, column '{name}': {labels.distinct[labels.places[row]]} is not a class; "
            "for real values set objective.kind=regression, for another column data.target"
        )
    if numbers is not None:  # 1 and " 1" are one class, 1 and 01 are two
        labels = Texts.named([text.strip() for text in labels.distinct], labels.places)
    classes = classes or in_order(labels.distinct)
    if len(classes) < 2 or len(classes) > max(20, len(labels) // 2):
        raise DataError(
            f"{source}: column '{name}' holds {len(classes)} classes in {len(labels)} rows: not a target; "
            "name another column in data.target, or set objective.kind=regression"
        )
    index = {value: i for i, value in enumerate(classes)}
    return np.array([index[text] for text in labels.distinct], np.int64)[labels.places], classes


def known_labels(labels: Texts, name: str, classes: tuple[str, ...], source: str) -> Indices:
    """Class indices [N] into known classes. DataError for a label that is none of them."""
    refuse_empty(labels, name, source)
    places = places_in(labels.distinct, classes)[labels.places]
    if (places < 0).any():
        row = int((places < 0).argmax())
        word = labels.distinct[labels.places[row]]
        raise DataError(
            f"{source}: row {row + 1}, column '{name}': '{word}' is no class of this model; {nearest(word, classes)}"
        )
    return places


def places_in(texts: Sequence[str], known: Sequence[str]) -> Indices:
    """The place of each text among the known ones, -1 for one that is not there.

    Another kind of file may write the same value in another way: 1 as 1.0, True as true. That is found where only one
    of the known ones is meant.
    """
    exact = {text: i for i, text in enumerate(known)}
    alike: dict[Hashable, list[int]] = {}
    for i, text in enumerate(known):
        alike.setdefault(_meaning(text), []).append(i)
    found = [exact.get(text, -1) for text in texts]
    for i, text in enumerate(texts):
        if found[i] < 0 and len(others := alike.get(_meaning(text), [])) == 1:
            found[i] = others[0]
    return np.array(found, np.int64)


def in_order(texts: Sequence[str]) -> tuple[str, ...]:
    """Numbers by their size, other texts by the alphabet."""
    numbers = plain_numbers(texts)
    if numbers is None:
        return tuple(sorted(texts))
    return tuple(text for _, text in sorted(zip(numbers.tolist(), texts, strict=True)))


def refuse_empty(column: Texts, name: str, source: str) -> None:
    """Raises DataError for the first row without a target."""
    bad = column.bad_cell()
    if bad is not None:
        raise DataError(f"{source}: row {bad[0] + 1}, column '{name}': {bad[1]}; every row needs its target")


def _meaning(text: str) -> Hashable:
    """Equal for two texts that mean one value: whole numbers of any length, other numbers, true and false."""
    bare = text.strip()
    if _WHOLE.fullmatch(bare):
        return int(bare) if len(bare) < 1000 else bare  # Python refuses to read more digits than 4300
    if plain_numbers([bare]) is not None:
        return float(bare)
    return bare.lower() if bare.lower() in ("true", "false") else text
