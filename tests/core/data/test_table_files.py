"""The kinds of files that tables come in: packed, as json, as a folder of parquet, from R, in pieces too large."""

import gzip
import json
import lzma
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from core.data import Data, Image, Split, Table, load, open_with
from core.errors import DataError

ALL = Split(0, 0)
ROWS: list[dict[str, Any]] = [{"a": i, "c": "uv"[i % 2], "y": "no" if i % 3 else "yes"} for i in range(12)]
CSV = "a,c,y\n" + "".join(f"{row['a']},{row['c']},{row['y']}\n" for row in ROWS)


def read(path: Path, **options: Any) -> Data:
    return load(Table(path=str(path), split=ALL, **options), "class")


def inputs(data: Data) -> torch.Tensor:
    return data.splits["train"].take(torch.arange(data.sizes["train"]))[0]


@pytest.fixture
def plain(tmp_path: Path) -> Data:
    (tmp_path / "plain.csv").write_text(CSV)
    return read(tmp_path / "plain.csv")


# --- packed, json, parquet -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.csv.gz", "A.CSV.XZ", "a.csv.zip", "kaggle.zip", "a.json", "a.json.gz", "a.ndjson"])
def test_the_same_rows_are_read_from_every_kind_of_file(name: str, plain: Data, tmp_path: Path) -> None:
    path, lower = tmp_path / name, name.lower()
    text = CSV if "csv" in lower or "zip" in lower else json.dumps(ROWS)
    if "ndjson" in lower:
        text = "\n".join(map(json.dumps, ROWS))
    if lower.endswith(".zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.csv", text)
    else:
        pack = gzip.compress if lower.endswith(".gz") else lzma.compress if lower.endswith(".xz") else bytes
        path.write_bytes(pack(text.encode()))
    data = read(path)
    assert data.preprocess == plain.preprocess and torch.equal(inputs(data), inputs(plain))


def test_a_folder_of_parquet_files_is_one_table(plain: Data, tmp_path: Path) -> None:
    folder = tmp_path / "table"
    for part, rows in (("b", ROWS[6:]), ("a", ROWS[:6])):
        (folder / part).mkdir(parents=True)
        parquet.write_table(pa.Table.from_pylist(rows), folder / part / "0.PARQUET")
    for name in ("_SUCCESS", ".crc"):
        (folder / name).write_text("")
    data = read(folder)
    assert torch.equal(inputs(data), inputs(plain))
    assert data.notes[0] == f"{folder}: left out 2 files (1 .crc, 1 _SUCCESS)"
    before = data.fingerprint
    parquet.write_table(pa.Table.from_pylist(ROWS[:5]), folder / "a" / "0.PARQUET")
    assert read(folder).fingerprint != before != ""


def test_folders_of_parquet_that_are_named_after_a_value_give_a_column(tmp_path: Path) -> None:
    for value in ("left", "right"):
        (tmp_path / "table" / f"side={value}").mkdir(parents=True)
        parquet.write_table(pa.table({"y": ["a", "b"] * 3}), tmp_path / "table" / f"side={value}" / "0.parquet")
    data = read(tmp_path / "table", target="y")
    assert inputs(data).tolist() == [[1, 0]] * 6 + [[0, 1]] * 6


def test_a_folder_that_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(CSV)
    with pytest.raises(DataError, match="is a folder without parquet files; a table is one file"):
        read(tmp_path)


# --- R, and missing values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_header_of_r_is_one_cell_short_and_its_row_names_are_no_input(mark: str, plain: Data, tmp_path: Path) -> None:
    lines = CSV.splitlines()
    text = "\n".join([lines[0], *(f'"{i + 1}",{line}' for i, line in enumerate(lines[1:]))])
    (tmp_path / "a.csv").write_text(text.replace(",", mark))
    data = read(tmp_path / "a.csv")
    assert data.preprocess == plain.preprocess and torch.equal(inputs(data), inputs(plain))
    assert any("index" in note or "row" in note for note in data.notes)
    opened = open_with(data.preprocess, Table(path=str(tmp_path / "a.csv"), target="y"))
    assert torch.equal(opened.splits["test"].take(torch.arange(12))[0], inputs(data))


def test_lines_that_end_with_a_mark_are_no_header_of_r(tmp_path: Path) -> None:
    lines = CSV.splitlines()
    (tmp_path / "a.csv").write_text("\n".join([lines[0], *(f"{line}," for line in lines[1:])]))
    with pytest.raises(DataError, match="line 2 has 4 cells, the first line has 3; mend that line"):
        read(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text(
        "\n".join([lines[0], *(f"{i},{line}" for i, line in enumerate(lines[1:] * 3))]) + "\n1,2\n"
    )
    with pytest.raises(DataError, match="line 38 has 2 cells, others have 4; mend that line"):
        read(tmp_path / "b.csv")


def test_what_is_read_as_missing_is_said(tmp_path: Path) -> None:
    text = CSV.replace("3,v", "NA,v").replace("4,u", "NULL,NA").replace("5,v", ",v")
    (tmp_path / "a.csv").write_text(text)
    data = read(tmp_path / "a.csv", missing="mean")
    assert "NA is read as an empty cell, in columns 'a', 'c'" in data.notes
    assert "NULL is read as an empty cell, in column 'a'" in data.notes
    with pytest.raises(DataError, match=r"row 5, column 'c': the cell is empty \(NA is read so\)"):
        read(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text(CSV.replace("5,v", ",v"))
    assert not any("empty cell" in note for note in read(tmp_path / "b.csv", missing="mean").notes)
    (tmp_path / "c.csv").write_text(CSV.replace("7,v,no", "7,v,NA"))
    with pytest.raises(DataError, match=r"row 8, column 'y': the cell is empty \(NA is read so\)"):
        read(tmp_path / "c.csv")


# --- encodings, large cells ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_another_encoding_far_into_a_csv_is_named_with_its_line(packed: bool, tmp_path: Path) -> None:
    text = "city,b,y\n" + "".join(f"Bonn,{i},{'no' if i % 2 else 'yes'}\n" for i in range(3000)) + "K\u00f6ln,3,yes\n"
    content = text.encode("cp1252")
    path = tmp_path / ("a.csv.gz" if packed else "a.csv")
    path.write_bytes(gzip.compress(content) if packed else content)
    for options in ({}, {"categorical": ("city",)}):
        with pytest.raises(DataError, match=r"line 3002: the byte 0xf6 is not UTF-8; the text may be cp1252") as caught:
            read(path, **options)
        assert str(path) in str(caught.value)


def test_a_cell_of_megabytes_is_a_text(tmp_path: Path) -> None:
    cells = ["x" * (3_000_000 if i == 6 else 5) for i in range(12)]
    (tmp_path / "a.csv").write_text("t,y\n" + "".join(f'"{c}",{i % 2}\n' for i, c in enumerate(cells)))
    data = read(tmp_path / "a.csv")
    assert data.spec.shape == (2,) and data.sizes["train"] == 12
    (tmp_path / "b.csv").write_text("t,y\n" + "".join(f'"{c}",{i % 2}\n' for i, c in enumerate(cells)) + "1\n")
    with pytest.raises(DataError, match="line 14 has 1 cells, the first line has 2"):
        read(tmp_path / "b.csv")


# --- NumPy ---------------------------------------------------------------------------------------------------------


def archive(path: Path, others: dict[str, str], **arrays: Any) -> Path:
    np.savez(path, **arrays)
    with zipfile.ZipFile(path, "a") as file:
        for name, text in others.items():
            file.writestr(name, text)
    return path


def test_what_is_no_array_in_an_npz_is_left_out_and_said(tmp_path: Path) -> None:
    others = {"README.txt": "about these data", "LICENSE": "free"}
    table = archive(tmp_path / "t.npz", others, x=np.arange(36.0).reshape(12, 3), y=np.arange(12) % 2)
    data = read(table)
    assert data.spec.shape == (3,) and f"{table}: left out what is no array: README.txt, LICENSE" in data.notes
    images = archive(tmp_path / "i.npz", others, x=np.zeros((12, 3, 3), np.uint8), y=np.arange(12) % 2)
    found = load(Image(path=str(images), split=ALL), "class")
    assert found.notes == (f"{images}: left out what is no array: README.txt, LICENSE",)
    with zipfile.ZipFile(tmp_path / "none.npz", "w") as file:
        file.writestr("README.txt", "nothing")
    with pytest.raises(DataError, match=r"none\.npz: holds no arrays: README\.txt"):
        read(tmp_path / "none.npz")
