"""A class has the text that it has in the file, whatever the kind of the file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.data import Image, Table, load, open_with

LABELS: dict[str, tuple[list[Any], tuple[str, ...]]] = {
    "booleans": ([False, True], ("False", "True")),
    "leading zeros": (["01", "1", "02"], ("01", "1", "02")),
    "long numbers": ([10**15, 10**15 + 1], (str(10**15), str(10**15 + 1))),
    "numbers past 2^53": ([2**53, 2**53 + 1], (str(2**53), str(2**53 + 1))),
    "small numbers": ([10, 9, -1], ("-1", "9", "10")),
    "texts": (["b", "a "], ("a ", "b")),
}


def write(path: Path, labels: list[Any], count: int = 30) -> Path:
    values = [labels[i % len(labels)] for i in range(count)]
    if path.suffix == ".csv":
        path.write_text("x,y\n" + "".join(f"{i / 7},{value}\n" for i, value in enumerate(values)))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps({"x": i / 7, "y": value}) for i, value in enumerate(values)))
    elif path.suffix == ".npz":
        np.savez(path, x=np.arange(count) / 7, y=np.array(values))
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"x": np.arange(count) / 7, "y": values}), path)
    return path


@pytest.mark.parametrize("extension", ["csv", "jsonl", "npz", "parquet"])
@pytest.mark.parametrize("case", list(LABELS))
def test_a_class_has_the_text_of_the_file(case: str, extension: str, tmp_path: Path) -> None:
    labels, classes = LABELS[case]
    config = Table(path=str(write(tmp_path / f"a.{extension}", labels)))
    data = load(config, "class")
    if case == "booleans" and extension == "jsonl":
        classes = ("false", "true")  # as json writes them
    assert data.spec.classes == classes
    examples = open_with(data.preprocess, config).splits["test"]
    targets = examples.take(examples.addresses(0, None))[1]
    written = [json.dumps(v) if extension == "jsonl" and isinstance(v, bool) else str(v) for v in labels]
    assert [classes[i] for i in targets[: len(labels)]] == written


@pytest.mark.parametrize("other", ["csv", "jsonl", "npz", "parquet"])
@pytest.mark.parametrize("case", ["booleans", "long numbers", "small numbers"])
def test_a_label_means_the_same_class_in_another_kind_of_file(case: str, other: str, tmp_path: Path) -> None:
    labels, _ = LABELS[case]
    data = load(Table(path=str(write(tmp_path / "a.csv", labels))), "class")
    found = open_with(data.preprocess, Table(path=str(write(tmp_path / f"b.{other}", labels, 6))))
    examples = found.splits["test"]
    targets = examples.take(examples.addresses(0, None))[1]
    assert [data.spec.classes[i] for i in targets] == [str(labels[i % len(labels)]) for i in range(6)]


def test_whole_numbers_with_a_point_are_the_classes_without_one(tmp_path: Path) -> None:
    data = load(Table(path=str(write(tmp_path / "a.csv", [0, 1]))), "class")
    other = open_with(data.preprocess, Table(path=str(write(tmp_path / "b.csv", ["1.0", "0.0"], 4))))
    targets = other.splits["test"].take(other.splits["test"].addresses(0, None))[1]
    assert targets.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("labels, classes", [([False, True], ("False", "True")), ([2**60, 2**60 + 1], None)])
def test_labels_of_pictures_have_their_texts_too(labels: list[Any], classes: Any, tmp_path: Path) -> None:
    values = np.array([labels[i % 2] for i in range(20)])
    np.savez(tmp_path / "a.npz", images=np.zeros((20, 8, 8), np.uint8), labels=values)
    data = load(Image(path=str(tmp_path / "a.npz")), "class")
    assert data.spec.classes == (classes or tuple(map(str, labels)))
