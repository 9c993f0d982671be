"""Splits are decided by the seed, in proportion for every class, and refuse to leave nothing."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data import Split
from core.data.split import refuse_unseen, split_documents, split_rows
from core.errors import DataError


@settings(max_examples=60)
@given(st.integers(10, 300), st.floats(0, 0.45), st.floats(0, 0.45), st.integers(0, 5), st.integers(1, 7))
def test_the_splits_are_a_partition_of_the_promised_sizes(
    count: int, validation: float, test: float, seed: int, classes: int
) -> None:
    labels = np.arange(count) % classes
    parts = split_rows(count, Split(validation, test), seed, labels)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(count))
    assert len(parts["test"]) == (max(1, round(count * test)) if test else 0)
    assert len(parts["validation"]) == (max(1, round(count * validation)) if validation else 0)


def test_the_same_seed_gives_the_same_split_and_another_seed_another() -> None:
    first, again, other = (split_rows(100, Split(), seed)["test"].tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_every_class_is_held_out_in_proportion() -> None:
    labels = np.repeat([0, 1, 2], [800, 150, 50])
    parts = split_rows(1000, Split(0.1, 0.2), 0, labels)
    assert abs(np.bincount(labels[parts["test"]]) - [160, 30, 10]).max() <= 1
    assert abs(np.bincount(labels[parts["validation"]]) - [80, 15, 5]).max() <= 1


def test_a_class_of_one_row_trains() -> None:
    labels = np.array([0] * 20 + [1, 2, 3, 4, 5] + [6] * 20)
    for seed in range(5):
        assert {20, 21, 22, 23, 24} <= set(split_rows(45, Split(0.2, 0.3), seed, labels)["train"].tolist())


def test_a_split_that_leaves_no_training_rows_is_refused() -> None:
    with pytest.raises(DataError, match="leave none of 2 examples"):
        split_rows(2, Split(), 0)


def test_a_class_that_is_only_held_out_is_refused_by_name() -> None:
    splits = {"train": np.array([0]), "validation": np.array([], int), "test": np.array([1])}
    with pytest.raises(DataError, match="class 'dog' is in the test split but not in training"):
        refuse_unseen(splits, np.array([0, 1]), ("cat", "dog"), "pets")


@pytest.mark.parametrize("values", [{"validation": -0.1}, {"test": 1.0}, {"validation": 0.5, "test": 0.5}])
def test_shares_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"^(validation|test) "):
        Split(**values)


def test_many_documents_are_held_out_whole() -> None:
    documents = [f"document {i} " * (i + 1) for i in range(40)]
    parts = split_documents(documents, Split(), 3)
    assert sorted(itertools.chain(*parts.values())) == sorted(documents)
    assert all(0.02 < len("".join(parts[name])) / len("".join(documents)) <= 0.1 for name in ("validation", "test"))


def test_of_few_documents_the_last_parts_are_held_out() -> None:
    parts = split_documents(["a" * 80 + "b" * 10 + "c" * 10], Split(), 0)
    assert parts == {"train": ["a" * 80], "validation": ["b" * 10], "test": ["c" * 10]}
