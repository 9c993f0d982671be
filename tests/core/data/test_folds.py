"""Folds and bootstraps: what each member of a repeat trains and is tested on, for every kind of data."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from core.data import BPE, Data, DataConfig, Image, Split, Table, Text, load
from core.data.split import MANY, Indices, refuse_lonely, split_documents, split_rows
from core.errors import DataError

SEEDS = st.integers(0, 5)


def folds_of(count: int, split: Split, seed: int, labels: Indices | None = None) -> list[dict[str, Indices]]:
    assert split.folds is not None
    return [split_rows(count, replace(split, fold=fold), seed, labels) for fold in range(split.folds)]


@settings(max_examples=80)
@given(st.integers(10, 200), st.integers(2, 10), st.floats(0, 0.5), st.integers(1, 6), SEEDS)
def test_every_row_is_tested_on_in_one_fold_and_is_in_one_split_of_each(
    count: int, folds: int, validation: float, classes: int, seed: int
) -> None:
    labels = np.random.default_rng(seed).integers(classes, size=count)
    parts = folds_of(count, Split(validation, folds=folds), seed, labels)
    assert sorted(np.concatenate([part["test"] for part in parts]).tolist()) == list(range(count))
    for part in parts:
        assert sorted(np.concatenate(list(part.values())).tolist()) == list(range(count))
        assert len(part["validation"]) == (max(1, round((count - len(part["test"])) * validation)) if validation else 0)


@settings(max_examples=80)
@given(st.integers(10, 200), st.integers(2, 10), st.integers(1, 6), SEEDS)
def test_folds_are_as_even_as_those_of_scikit_learn(count: int, folds: int, classes: int, seed: int) -> None:
    from sklearn.model_selection import StratifiedKFold

    labels = np.random.default_rng(seed).integers(classes, size=count)
    assume(np.bincount(labels)[np.unique(labels)].min() >= folds)
    ours = np.array(
        [np.bincount(labels[p["test"]], minlength=classes) for p in folds_of(count, Split(folds=folds), 0, labels)]
    )
    theirs = np.array(
        [np.bincount(labels[t], minlength=classes) for _, t in StratifiedKFold(folds).split(labels, labels)]
    )
    assert np.array_equal(np.sort(ours, axis=0), np.sort(theirs, axis=0))
    assert np.ptp(ours, axis=0).max() <= 1 >= np.ptp(ours.sum(axis=1))


def test_without_classes_the_folds_differ_by_one_row_at_most() -> None:
    assert [len(part["test"]) for part in folds_of(103, Split(folds=5), 0)] == [21, 21, 21, 20, 20]


def test_more_folds_than_rows_are_refused() -> None:
    with pytest.raises(DataError, match=r"data\.split\.folds: 5 folds of 4 examples; lower it"):
        split_rows(4, Split(folds=5), 0)


def test_a_class_of_one_row_is_refused_by_name_whatever_the_fold() -> None:
    labels = np.array([0, 0, 2, 1, 1])
    refuse_lonely(labels, ("a", "b", "c"), Split(), "pets")
    with pytest.raises(DataError, match="pets: class 'c' has one example only"):
        refuse_lonely(labels, ("a", "b", "c"), Split(folds=2), "pets")


def test_a_class_of_two_rows_trains_in_every_fold() -> None:
    labels = np.array([0] * 40 + [1, 1])
    assert all(1 in labels[part["train"]] for part in folds_of(42, Split(0.4, folds=5), 0, labels))


def test_the_splits_own_seed_decides_what_is_held_out_whatever_the_recipes() -> None:
    split = Split(seed=3)
    assert split_rows(100, split, 7)["test"].tolist() == split_rows(100, Split(), 3)["test"].tolist()
    documents = [f"document {i}" for i in range(40)]
    for shape in ({}, {"folds": 4}, {"bootstrap": 1}):
        assert split_documents(documents, Split(seed=3, **shape), 7) == split_documents(documents, Split(**shape), 3)
        assert split_documents(documents, Split(seed=3, **shape), 7) != split_documents(documents, Split(**shape), 7)


@settings(max_examples=80)
@given(st.integers(10, 200), st.integers(1, 6), st.integers(0, 9), SEEDS, st.sampled_from([None, 3]))
def test_a_bootstrap_draws_as_many_training_rows_of_each_class_and_leaves_the_rest(
    count: int, classes: int, bootstrap: int, seed: int, folds: int | None
) -> None:
    labels = np.random.default_rng(seed).integers(classes, size=count)
    split = Split(folds=folds)
    plain, drawn = (split_rows(count, s, seed, labels) for s in (split, replace(split, bootstrap=bootstrap)))
    assert set(drawn["train"].tolist()) <= set(plain["train"].tolist())
    assert np.array_equal(np.bincount(labels[drawn["train"]]), np.bincount(labels[plain["train"]]))
    assert all(np.array_equal(drawn[name], plain[name]) for name in ("validation", "test"))


@pytest.mark.parametrize("labels", [None, np.arange(5000) % 2])
def test_a_bootstrap_leaves_out_the_share_of_rows_that_chance_does(labels: Indices | None) -> None:
    rows = split_rows(5000, Split(bootstrap=0), 0, labels)["train"]
    assert len(np.unique(rows)) / len(rows) == pytest.approx(1 - np.exp(-1), abs=0.02)


def test_each_bootstrap_is_another_and_the_same_again() -> None:
    first, again, other = (split_rows(100, Split(bootstrap=b), 0)["train"].tolist() for b in (0, 0, 1))
    assert first == again != other


# --- documents -----------------------------------------------------------------------------------------------------


def documents_of(count: int, seed: int) -> list[str]:
    """Texts of 10 to 60 characters of which no two are alike."""
    lengths = np.random.default_rng(seed).integers(10, 60, size=count)
    ends = np.cumsum(lengths)
    return ["".join(map(chr, range(1000 + end - n, 1000 + end))) for n, end in zip(lengths, ends, strict=True)]


@settings(max_examples=60)
@given(st.integers(1, 60), st.integers(2, 10), SEEDS)
def test_every_character_is_tested_on_in_one_fold(count: int, folds: int, seed: int) -> None:
    documents = documents_of(count, seed)
    parts = [split_documents(documents, Split(folds=folds, fold=fold), seed) for fold in range(folds)]
    text = sorted("".join(documents))
    assert sorted("".join("".join(part["test"]) for part in parts)) == text
    assert all(sorted("".join("".join(texts) for texts in part.values())) == text for part in parts)
    sizes = [len("".join(part["test"])) for part in parts]
    assert min(sizes) > 0 and max(sizes) <= 2 * len(text) / folds


def test_many_documents_fall_into_a_fold_whole() -> None:
    documents = documents_of(MANY, 0)
    part = split_documents(documents, Split(folds=4, fold=1), 0)
    assert part["test"] and set(part["test"]) <= set(documents)


def test_of_few_documents_each_gives_a_part_to_a_fold() -> None:
    text = "a" * 30 + "b" * 30 + "c" * 30
    part = split_documents([text, text], Split(0.5, folds=3, fold=1), 0)
    assert part == {
        "train": ["a" * 15, "c" * 15] * 2,
        "validation": ["a" * 15, "c" * 15] * 2,
        "test": ["b" * 30] * 2,
    }


def test_documents_are_cut_where_there_are_few_even_if_they_are_alike() -> None:
    part = split_documents(["abcd" * 10] * (MANY - 1), Split(folds=4, fold=1), 0)
    assert part["test"] == ["cdabcdabcd"] * (MANY - 1)


def test_a_document_that_is_most_of_the_text_is_cut() -> None:
    documents = ["x" * 5000, *documents_of(MANY, 0)]
    assert all("x" * 1000 in split_documents(documents, Split(folds=5, fold=fold), 0)["test"][0] for fold in range(5))


def test_with_more_folds_than_documents_every_fold_has_some_text() -> None:
    documents = [str(i % 10) * 100 for i in range(MANY)]
    assert all(split_documents(documents, Split(folds=30, fold=fold), 0)["test"] for fold in range(30))


def test_a_bootstrap_draws_many_documents_whole() -> None:
    documents = documents_of(50, 0)
    plain, drawn = (split_documents(documents, Split(bootstrap=b), 0) for b in (None, 2))
    assert len(drawn["train"]) == len(plain["train"]) > len(set(drawn["train"]))
    assert set(drawn["train"]) <= set(plain["train"])
    assert (drawn["validation"], drawn["test"]) == (plain["validation"], plain["test"])


@settings(max_examples=60)
@given(st.integers(1, 500), SEEDS)
def test_a_bootstrap_of_one_document_is_as_long_and_made_of_its_blocks(length: int, bootstrap: int) -> None:
    text = "".join(map(chr, range(1000, 1000 + length)))
    (drawn,) = split_documents([text], Split(0, 0, bootstrap=bootstrap), 0)["train"]
    size = -(-length // 20)
    assert len(drawn) == length
    assert all(drawn[i : i + size] in text for i in range(0, length, size))


# --- loading -------------------------------------------------------------------------------------------------------


def loaded(config: DataConfig, target: Any = "class", seed: int = 0, **split: Any) -> Data:
    return load(replace(config, split=Split(**split)), target, seed)


def write_folder(root: Path, sets: tuple[str, ...] = ("",), each: int = 12) -> str:
    from PIL import Image as Pillow

    for n, group in enumerate(sets):
        for k, name in enumerate(("cat", "dog")):
            folder = root / group / name
            folder.mkdir(parents=True)
            for i in range(each):
                # the upper left pixel is the image's number
                Pillow.fromarray(np.full((4, 4), (n * 2 + k) * each + i, np.uint8)).save(folder / f"{i:02}.png")
    return str(root)


def numbers(data: Data, split: str) -> list[int]:
    """The upper left pixels, undone of their normalization."""
    mean, std = data.preprocess.fitted.scale(255)
    inputs = data.splits[split].take(torch.arange(data.sizes[split]))[0]
    return [int(value) for value in (inputs * std + mean).round()[:, 0, 0, 0]]


def write_table(folder: Path) -> str:
    path = folder / "a.csv"
    path.write_text("x,y\n" + "".join(f"{i},{i % 3}\n" for i in range(60)))
    return str(path)


@pytest.mark.parametrize("split", [{}, {"folds": 4, "fold": 2}, {"bootstrap": 1}])
@pytest.mark.parametrize("kind", ["table", "memory", "files"])
def test_rows_name_the_source_rows_of_each_example(kind: str, split: dict[str, int], tmp_path: Path) -> None:
    if kind == "table":
        data = loaded(Table(path=write_table(tmp_path), normalize=False), **split)
        found = {name: data.splits[name].inputs[:, 0].long().tolist() for name in data.splits}
    else:
        memory = 0 if kind == "files" else 100
        data = loaded(Image(path=write_folder(tmp_path / "pets"), memory_mb=memory), **split)
        found = {name: numbers(data, name) for name in data.splits}
    assert data.rows is not None
    assert {name: rows.tolist() for name, rows in data.rows.items()} == found
    assert data.sizes == {name: len(rows) for name, rows in data.rows.items()}


def test_real_targets_are_folded_and_resampled_too() -> None:
    parts = [loaded(Table(path="bundled:diabetes"), "real", folds=3, fold=fold, bootstrap=fold) for fold in range(3)]
    tested = torch.cat([part.rows["test"] for part in parts if part.rows])
    assert sorted(tested.tolist()) == list(range(442))
    assert all(len(part.rows["train"].unique()) < part.sizes["train"] for part in parts if part.rows)


@pytest.mark.parametrize("change", [{"folds": 3, "fold": 0}, {"folds": 3, "fold": 1}, {"bootstrap": 0}])
def test_preprocessing_is_fitted_on_the_members_training_rows(change: dict[str, int], tmp_path: Path) -> None:
    table = loaded(Table(path=write_table(tmp_path)), **change)
    assert table.rows is not None
    feature, rows = table.preprocess.fitted.features[0], table.rows["train"].double()
    assert (feature.mean, feature.std) == pytest.approx((rows.mean().item(), rows.std(correction=0).item()))
    images = loaded(Image(), **change)
    assert images.splits["train"].inputs.mean().item() == pytest.approx(0, abs=1e-5)


def test_folds_of_files_with_a_test_set_are_cut_from_their_training_part(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "a", ("train", "test"))
    parts = [loaded(Image(path=path), folds=4, fold=fold) for fold in range(4)]
    assert sorted(number for part in parts for number in numbers(part, "test")) == list(range(24))
    assert all(part.sizes["validation"] == 2 for part in parts)


def test_folds_leave_the_files_own_validation_set(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "a", ("train", "val", "test"))
    parts = [loaded(Image(path=path), folds=4, fold=fold) for fold in range(4)]
    own = numbers(loaded(Image(path=path)), "validation")
    assert all(numbers(part, "validation") == own for part in parts)
    assert sum(part.sizes["test"] for part in parts) == 24


def test_a_bootstrap_leaves_the_files_own_test_set(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "a", ("train", "test"))
    plain, drawn = (loaded(Image(path=path), bootstrap=b) for b in (None, 0))
    assert numbers(drawn, "test") == numbers(plain, "test")
    assert set(numbers(drawn, "train")) < set(numbers(plain, "train"))


@pytest.mark.parametrize("fold", [0, 1])
def test_a_file_with_a_class_of_one_row_has_no_folds(fold: int, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,y\n" + "".join(f"{i},{int(i == 7)}\n" for i in range(20)))
    with pytest.raises(DataError, match="class '1' has one example only"):
        loaded(Table(path=str(path)), folds=2, fold=fold)


def test_a_class_that_trains_once_is_refused_whatever_the_unused_test_set_holds(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    images, labels = np.zeros((12, 4, 4), np.uint8), np.arange(12) % 2
    np.savez(path, x_train=images, y_train=np.arange(12) == 5, x_test=images, y_test=labels)
    with pytest.raises(DataError, match="class '1' has one example only"):
        loaded(Image(path=str(path)), folds=2)


def test_a_fold_of_a_text_is_what_its_model_is_tested_on(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abcdefgh" * 50 + "stuvwxyz" * 50)
    data = loaded(Text(path=str(path), context=8), "token", folds=2, fold=1)
    assert data.rows is None
    assert set(bytes(data.splits["test"].inputs.flatten().tolist())) == set(b"stuvwxyz")


def test_the_tokenizer_is_learned_on_the_members_training_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abcdefgh " * 200 + "stuvwxyz " * 200)
    config = Text(path=str(path), context=8, tokenizer=BPE(vocab=300))
    tokenizers = [loaded(config, "token", folds=2, fold=fold).preprocess.tokenizer for fold in (0, 1)]
    assert [len(tokenizer.encode(" abcdefgh")) for tokenizer in tokenizers] == [9, 1]


@pytest.mark.parametrize("test", [0.0, 0.1])
def test_a_text_too_short_for_a_fold_is_refused(test: float, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abcdefghi")
    with pytest.raises(DataError, match=r"too short for a test split; give more text, or lower data\.split\.folds"):
        loaded(Text(path=str(path), context=2), "token", folds=20, validation=0.0, test=test)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"folds": 1}, "folds must be at least 2, got 1; null"),
        ({"fold": 1}, "fold must be 0 where folds is not set"),
        ({"folds": 3, "fold": 3}, r"fold must be at least 0 and below folds \(3\), got 3"),
        ({"folds": 3, "fold": -1}, r"fold must be at least 0"),
        ({"bootstrap": -1}, "bootstrap must be 0 or more, got -1; null"),
    ],
)
def test_folds_out_of_range_are_refused_with_the_fields_name(values: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Split(**values)


def test_folds_ignore_the_share_of_the_test_split() -> None:
    split = Split(0.2, 0.9, folds=5)
    assert {name: len(rows) for name, rows in split_rows(100, split, 0).items()} == {
        "train": 64,
        "validation": 16,
        "test": 20,
    }
