"""Tables of every format, and every way in which they can be wrong."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.data import Split, Table, load, open_with
from core.errors import DataError

NAMES = ("age", "city", "income", "label")


def rows(count: int = 40) -> list[tuple[Any, ...]]:
    return [(20 + i, ("Ulm", "Kiel", "Bonn")[i % 3], 1000.5 + 10 * i, ("no", "yes")[i % 2]) for i in range(count)]


def write_csv(path: Path, lines: list[tuple[Any, ...]], names: tuple[str, ...] = NAMES, delimiter: str = ",") -> Path:
    path.write_text("\n".join(delimiter.join(map(str, line)) for line in [names, *lines]) + "\n")
    return path


def write(path: Path) -> Path:
    """The same table in the format of the file's extension."""
    if path.suffix in (".csv", ".tsv"):
        return write_csv(path, rows(), delimiter="," if path.suffix == ".csv" else "\t")
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(dict(zip(NAMES, row, strict=True))) for row in rows()))
        return path
    columns = dict(zip(NAMES, zip(*rows(), strict=True), strict=True))
    if path.suffix == ".npz":
        np.savez(path, **{name: np.array(values) for name, values in columns.items()})
        return path
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({name: list(values) for name, values in columns.items()}), path)
    return path


@pytest.mark.parametrize("extension", ["tsv", "jsonl", "npz", "parquet"])
def test_every_format_gives_what_the_csv_gives(extension: str, tmp_path: Path) -> None:
    expected = load(Table(path=str(write(tmp_path / "a.csv"))), "class")
    data = load(Table(path=str(write(tmp_path / f"a.{extension}"))), "class")
    assert data.spec == expected.spec and data.preprocess == expected.preprocess
    for split, examples in expected.splits.items():
        assert torch.equal(data.splits[split].inputs, examples.inputs)
        assert torch.equal(data.splits[split].targets, examples.targets)


def test_a_matrix_has_its_target_in_the_last_column(tmp_path: Path) -> None:
    matrix = np.column_stack([np.arange(30.0), np.arange(30.0) ** 2, np.arange(30) % 3])
    np.save(tmp_path / "a.npy", matrix)
    data = load(Table(path=str(tmp_path / "a.npy")), "class")
    assert data.spec.shape == (2,) and data.spec.classes == ("0", "1", "2")


def test_numbers_are_standardized_and_texts_one_hot_over_the_training_rows_only(tmp_path: Path) -> None:
    data = load(Table(path=str(write(tmp_path / "a.csv"))), "class")
    train, rest = data.splits["train"].inputs, data.splits["test"].inputs
    assert data.spec.shape == (5,)  # age, three cities, income
    numbers = train[:, [0, 4]]
    assert torch.allclose(numbers.mean(0), torch.zeros(2), atol=1e-5)
    assert torch.allclose(numbers.std(0, correction=0), torch.ones(2), atol=1e-5)
    assert not torch.allclose(rest[:, [0, 4]].mean(0), torch.zeros(2), atol=1e-2)
    assert torch.equal(torch.cat([train, rest])[:, 1:4].sum(1), torch.ones(len(train) + len(rest)))
    age = data.preprocess.fitted.features[0]
    trained = (train[:, 0] * age.std + age.mean).round().int().tolist()
    changed = [row if row[0] in trained else (row[0], "Rom", 1e6, row[3]) for row in rows()]
    assert sum(row[1] == "Rom" for row in changed) == 8
    again = load(Table(path=str(write_csv(tmp_path / "b.csv", changed))), "class")
    assert again.preprocess == data.preprocess
    assert torch.equal(again.splits["train"].inputs, train)


def test_texts_can_become_integer_codes(tmp_path: Path) -> None:
    data = load(Table(path=str(write(tmp_path / "a.csv")), categories="integer"), "class")
    assert data.spec.shape == (3,)
    assert set(data.splits["train"].inputs[:, 1].tolist()) == {0.0, 0.5, 1.0}


def test_columns_target_and_weight_are_chosen_by_name(tmp_path: Path) -> None:
    path = str(write(tmp_path / "a.csv"))
    data = load(Table(path=path, target="age", columns=("income",), weight="income", normalize=False), "real")
    train = data.splits["train"]
    assert torch.equal(train.weight, train.inputs[:, 0])
    assert torch.equal(train.targets[:, 0], (train.inputs[:, 0] - 1000.5) / 10 + 20)


def test_missing_cells_become_the_training_mean_if_asked(tmp_path: Path) -> None:
    lines = [(i, "" if i == 5 else i * 1.0, "a" if i else "", i % 2) for i in range(20)]
    path = write_csv(tmp_path / "a.csv", lines, ("id", "x", "word", "y"))
    config = Table(path=str(path), missing="mean", split=Split(0, 0))
    data = load(config, "class")
    assert data.splits["train"].inputs[5, 1] == 0 and data.splits["train"].inputs[0, 2] == 0
    assert data.preprocess.fitted.features[1].mean == pytest.approx((190 - 5) / 19)


def test_a_csv_without_header_is_read_when_it_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("".join(f"{i},{i * i},{i % 2}\n" for i in range(20)))
    data = load(Table(path=str(path), header=False), "class")
    assert data.preprocess.fitted.names == ("f0", "f1")
    with pytest.raises(DataError, match=r"line 1 holds numbers.*data\.header=false"):
        load(Table(path=str(path)), "class")


def test_quoted_cells_may_hold_newlines_and_commas(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,word,y\n" + "".join(f'{i},"a,\nb",{i % 2}\n' for i in range(20)))
    assert load(Table(path=str(path)), "class").preprocess.fitted.features[1].values == ("a,\nb",)


def test_the_fingerprint_is_that_of_the_content(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a.csv"), write(tmp_path / "b.csv")
    assert load(Table(path=str(one)), "class").fingerprint == load(Table(path=str(two)), "class").fingerprint
    two.write_text(two.read_text() + "1,Ulm,2,no\n")
    assert load(Table(path=str(one)), "class").fingerprint != load(Table(path=str(two)), "class").fingerprint


BAD_CSV = {
    "empty": ("", r"a\.csv: the file is empty"),
    "no rows": ("x,y\n", "holds no rows"),
    "ragged": ("x,y\n1,2\n1,2,3\n", "line 3 has 3 cells, the first line has 2"),
    "empty cell": ("x,y\n" + "1,0\n1,1\n" * 5 + ",1\n", "row 11, column 'x': the cell is empty or NaN.*missing=mean"),
    "nan": ("x,y\nnan,0\n" + "1,0\n1,1\n" * 5, "row 1, column 'x'"),
    "infinite": ("x,y\ninf,0\n" + "1,0\n1,1\n" * 5, "row 1, column 'x': the number is infinite"),
    "empty text": ("x,y\n" + "a,0\nb,1\n" * 5 + ",1\n", "row 11, column 'x': the cell is empty"),
    "empty target": ("x,y\n" + "1,0\n1,1\n" * 5 + "1,\n", "row 11, column 'y': .*every row needs its target"),
    "typo": ("x,y\n" + "1,0\n1,1\n" * 5 + "1o,1\n", "row 11, column 'x': '1o' among numbers"),
    "duplicate name": ("x,x,y\n1,2,3\n", "column name 'x' appears twice"),
    "one class": ("x,y\n" + "1,0\n" * 5, "holds 1 classes"),
    "too many classes": ("x,y\n" + "".join(f"{i},{i}\n" for i in range(50)), "50 classes in 50 rows.*regression"),
    "real classes": ("x,y\n" + "1,0.5\n1,1\n" * 5, r"row 1, column 'y': 0\.5 is not a class.*regression"),
    "only a target": ("y\n" + "0\n1\n" * 5, "no column to predict 'y' from"),
    "an identifier": (
        "x,y\n" + "".join(f"name{i},{i % 2}\n" for i in range(400)),
        r"400 different texts.*data\.drop=\[x\]",
    ),
    "not text": (b"x,y\n\xff\xfe,1\n", "line 2: the byte 0xff is not UTF-8; the text may be cp1252"),
}


@pytest.mark.parametrize("case", list(BAD_CSV))
def test_a_bad_csv_is_refused_in_one_line_that_says_where(case: str, tmp_path: Path) -> None:
    content, message = BAD_CSV[case]
    (tmp_path / "a.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        load(Table(path=str(tmp_path / "a.csv")), "class")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"target": "lable"}, r"data\.target: there is no column 'lable'; did you mean 'label'"),
        ({"columns": ("agee",)}, r"data\.columns: there is no column 'agee'; did you mean 'age'"),
        ({"columns": ("label",)}, "'label' is the target"),
        ({"weight": "zzz"}, r"data\.weight: there is no column 'zzz'; there are age"),
        ({"weight": "city"}, "column 'city' holds texts"),
    ],
)
def test_a_column_that_is_not_there_is_refused(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv")
    with pytest.raises(DataError, match=message):
        load(Table(path=str(path), **values), "class")


def test_texts_are_no_real_targets(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column 'label' holds texts, a regression needs numbers"):
        load(Table(path=str(write(tmp_path / "a.csv"))), "real")


def test_a_weight_below_zero_is_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [(1, -1 if i == 2 else 1, i % 2) for i in range(9)], ("x", "w", "y"))
    with pytest.raises(DataError, match=r"row 3, column 'w': the weight -1\.0 is below 0"):
        load(Table(path=str(path), weight="w"), "class")


def test_a_file_that_is_not_there_is_refused_with_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "people.csv")
    with pytest.raises(DataError, match=r"peopel\.csv: no such file or folder; did you mean .*people\.csv"):
        load(Table(path=str(tmp_path / "peopel.csv")), "class")


@pytest.mark.parametrize("name", ["a.xlsx", "a"])
def test_an_unknown_extension_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=r"is not read as this kind of data; use \.csv, \.tsv"):
        load(Table(path=str(tmp_path / name)), "class")


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "a.parquet": (b"PAR1 and then nothing", "not a readable parquet file"),
    "a.npz": (b"PK\x03\x04 broken", "not a readable NumPy file"),
    "a.npy": (b"\x93NUMPY", "not a readable NumPy file"),
    "a.jsonl": (b'{"x": 1}\n{"x": \n', "line 2: not valid JSON"),
}


@pytest.mark.parametrize("name", list(BAD_FILES))
def test_a_damaged_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(BAD_FILES[name][0])
    with pytest.raises(DataError, match=BAD_FILES[name][1]):
        load(Table(path=str(tmp_path / name)), "class")


@pytest.mark.parametrize(
    "line, message", [("[1]", "line 1: not a JSON object"), ('{"x": [1], "y": 1}', "line 1, key 'x': a list")]
)
def test_json_lines_hold_plain_objects(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(DataError, match=message):
        load(Table(path=str(tmp_path / "a.jsonl")), "class")


def test_arrays_that_would_have_to_be_unpickled_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(DataError, match="without Python objects"):
        load(Table(path=str(tmp_path / "a.npy")), "class")


def test_arrays_of_different_lengths_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 2)), y=np.zeros(5))
    with pytest.raises(DataError, match=r"different lengths: x \[4, 2\], y \[5\]"):
        load(Table(path=str(tmp_path / "a.npz")), "class")


def test_another_file_is_prepared_as_the_training_file_was(tmp_path: Path) -> None:
    data = load(Table(path=str(write(tmp_path / "a.csv"))), "class")
    lines = [("yes", 25, 1100.0, "Ulm"), ("no", 30, 1200.0, "Rom")]
    path = write_csv(tmp_path / "b.csv", lines, ("label", "age", "income", "city"))
    other = open_with(data.preprocess, Table(path=str(path))).splits["test"]
    fitted = data.preprocess.fitted
    assert other.targets.tolist() == [1, 0]
    assert other.inputs[0, 0] == pytest.approx((25 - fitted.features[0].mean) / fitted.features[0].std)
    assert other.inputs[:, 1:4].tolist() == [[0, 0, 1], [0, 0, 0]]  # a city never seen in training has no input


def test_a_file_without_the_weight_column_weighs_all_rows_alike(tmp_path: Path) -> None:
    config = Table(path=str(write(tmp_path / "a.csv")), columns=("city",), weight="age")
    data = load(config, "class")
    path = write_csv(tmp_path / "b.csv", [("Ulm",), ("Kiel",)], ("city",))
    (batch,) = open_with(data.preprocess, replace(config, path=str(path))).shard().held_out("test", 10)
    assert batch["weight"].tolist() == [1, 1]


def test_a_file_without_targets_gives_batches_without_targets(tmp_path: Path) -> None:
    data = load(Table(path=str(write(tmp_path / "a.csv"))), "class")
    path = write_csv(tmp_path / "b.csv", [row[:3] for row in rows(5)], NAMES[:3])
    (batch,) = open_with(data.preprocess, Table(path=str(path))).shard().held_out("test", 10)
    assert "targets" not in batch and len(batch["inputs"]) == 5


@pytest.mark.parametrize(
    "names, line, message",
    [
        (("agee", "city", "income"), (1, "Ulm", 2), "column 'age' is missing; did you mean 'agee'"),
        (
            ("age", "city", "income"),
            ("old", "Ulm", 2),
            "row 1, column 'age': 'old' is no number, and the model was trained on numbers",
        ),
        (NAMES, (1, "Ulm", 2, "nope"), "row 1, column 'label': 'nope' is no class of this model"),
    ],
)
def test_another_file_that_does_not_match_is_refused(
    names: tuple[str, ...], line: Any, message: str, tmp_path: Path
) -> None:
    data = load(Table(path=str(write(tmp_path / "a.csv"))), "class")
    with pytest.raises(DataError, match=message):
        open_with(data.preprocess, Table(path=str(write_csv(tmp_path / "b.csv", [line], names))))


def test_a_packed_file_of_an_unknown_kind_is_an_unknown_extension(tmp_path: Path) -> None:
    for name in ("a.gz", "a.npz.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"x,y\n1,2\n"))
        with pytest.raises(DataError, match=r"the extension '\.gz'"):
            load(Table(path=str(tmp_path / name)), "class")
