"""Tables as columns: csv, tsv, parquet, json, jsonl, npz and npy files, of which those columns are read that are asked
for.

Errors name file and line.
"""

import json
import sys
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.data.sources.arrow import columns_of
from core.data.sources.contents import PACKED, is_packed, kind_of, refuse_bomb
from core.data.sources.delimited import open_delimited
from core.data.sources.files import relative_name, sha256_file, sha256_named, unknown_extension
from core.data.sources.frame import Column, Frame, Numeric, Texts, texts_of
from core.data.sources.notation import Odd
from core.data.sources.records import ENDINGS as RECORDS
from core.data.sources.records import Record, read_records
from core.data.sources.walk import LeftOut, walk
from core.errors import DataError, blamed

Fetched = Mapping[str, Column | Odd]
PARQUET = (".parquet", ".pq")
EXTENSIONS = (".csv", ".tsv", *PARQUET, *RECORDS, ".npz", ".npy")


def open_table_file(path: Path, header: bool = True, delimiter: str | None = None) -> Frame:
    """The columns of a file, or of a folder of parquet files, to be read as they are asked for. Raises DataError for
    anything else."""
    kind = ".parquet" if path.is_dir() else kind_of(path)
    openers: dict[str, Callable[[], Frame]] = {
        ".csv": lambda: open_delimited(path, delimiter, header),
        ".tsv": lambda: open_delimited(path, delimiter, header),
        **dict.fromkeys(PARQUET, lambda: _open_parquet(path)),
        **dict.fromkeys(RECORDS, lambda: _open_records(path)),
        ".npz": lambda: _open_arrays(path),
        ".npy": lambda: _open_arrays(path),
    }
    if kind not in openers or (is_packed(path) and kind not in (".csv", ".tsv", *RECORDS)):
        raise unknown_extension(path, (*EXTENSIONS, f"csv, tsv and json also packed: {', '.join(PACKED)}"))
    return openers[kind]()


def fingerprint_of(path: Path) -> str:
    """The SHA-256 of a table: of the file, or of a folder's files and their names."""
    if path.is_file():
        return sha256_file(path)
    return sha256_named((relative_name(file, path), sha256_file(file)) for file in walk(path, PARQUET, LeftOut()))


def _open_parquet(path: Path) -> Frame:
    """Of a folder all files below it, in order of path; folders called NAME=VALUE give a column NAME, as Hive does."""
    from pyarrow import dataset

    left = LeftOut()
    files = walk(path, PARQUET, left) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: is a folder without parquet files; a table is one file ({', '.join(EXTENSIONS)})")
    root = str(path) if path.is_dir() else None
    with blamed(DataError, str(path), "not a readable parquet file"):
        found = dataset.dataset(
            [str(file) for file in files],
            format="parquet",
            partition_base_dir=root,
            partitioning=dataset.partitioning(flavor="hive") if root else None,
        )
        names, packed = tuple(found.schema.names), sum(file.stat().st_size for file in files)

    def fetch(names: Sequence[str], texts: Collection[str], digits: Collection[str]) -> Fetched:
        with blamed(DataError, str(path), "not a readable parquet file"):
            refuse_bomb(path, found.count_rows() * len(names), packed)  # a flag, 8 bytes in memory, takes a bit at most
            return columns_of(found.to_table(columns=list(names)), texts)

    return Frame(names, fetch, left.note(path))


def _open_records(path: Path) -> Frame:
    unit, records = read_records(path)

    def fetch(names: Sequence[str], texts: Collection[str], digits: Collection[str]) -> Fetched:
        return {name: _json_column(unit, records, name, name in texts) for name in names}

    return Frame(tuple(dict.fromkeys(name for _, record in records for name in record)), fetch)


def _json_column(unit: str, records: Sequence[tuple[int, Record]], name: str, as_texts: bool) -> Column | Odd:
    values = [record.get(name) for _, record in records]
    for (number, _), value in zip(records, values, strict=True):
        if not isinstance(value, int | float | str | None):
            return Odd("", f"{unit} {number}, key '{name}': a {type(value).__name__}, not a number or a text")
    if as_texts or any(isinstance(value, str) for value in values):
        return Texts.of([None if v is None else v if isinstance(v, str) else json.dumps(v) for v in values])
    try:
        return Numeric(np.array([np.nan if v is None else float(v) for v in values], dtype=np.float64))
    except OverflowError:
        number = next(n for (n, _), v in zip(records, values, strict=True) if abs(v or 0) > sys.float_info.max)
        return Odd("", f"{unit} {number}, key '{name}': a number of more digits than float64 holds")


def read_numpy(path: Path) -> tuple[dict[str, NDArray[Any]], tuple[str, ...]]:
    """The arrays of an npz file by name, or of an npy file as `inputs`, and a note of what else is in it. Nothing is
    unpickled."""
    with blamed(DataError, str(path), "not a readable NumPy file without Python objects"), path.open("rb") as file:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                refuse_bomb(path, sum(member.file_size for member in archive.infolist()), path.stat().st_size)
        file.seek(0)
        content = np.load(file, allow_pickle=False)
        is_one = isinstance(content, np.ndarray)
        members = {"inputs": content} if is_one else {name: content[name] for name in content.files}
        arrays = {name: member for name, member in members.items() if isinstance(member, np.ndarray)}
        for array in arrays.values():
            if array.dtype.kind == "U":  # numpy holds any number as a character
                "".join(array.ravel().tolist()).encode()
    others = [name for name in members if name not in arrays]
    if not arrays:
        raise DataError(f"{path}: holds no arrays{': ' if others else ''}{', '.join(others)}")
    return arrays, (f"{path}: left out what is no array: {', '.join(others)}",) if others else ()


def _open_arrays(path: Path) -> Frame:
    """Matrices become columns f0, f1, ...; vectors keep their name and come after them."""
    arrays, notes = read_numpy(path)
    matrices = {name: array for name, array in arrays.items() if array.ndim == 2}
    vectors = {name: array for name, array in arrays.items() if array.ndim == 1}
    other = next((name for name, array in arrays.items() if array.ndim not in (1, 2)), None)
    if other is not None or len(matrices) > 1:
        raise DataError(f"{path}: a table is one matrix and vectors, this file holds {_shapes(arrays)}")
    columns: dict[str, NDArray[Any]] = {}
    for array in matrices.values():
        columns |= {f"f{i}": array[:, i] for i in range(array.shape[1])}
    columns |= vectors
    if len({len(values) for values in columns.values()}) > 1:
        raise DataError(f"{path}: the arrays are of different lengths: {_shapes(arrays)}")

    def fetch(names: Sequence[str], texts: Collection[str], digits: Collection[str]) -> Fetched:
        return {name: _numpy_column(name, columns[name], name in texts) for name in names}

    return Frame(tuple(columns), fetch, notes)


def _shapes(arrays: dict[str, NDArray[Any]]) -> str:
    return ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())


def _numpy_column(name: str, values: NDArray[Any], as_texts: bool) -> Column | Odd:
    if values.dtype.kind == "U" or (as_texts and values.dtype.kind in "biuf"):
        return texts_of(values)
    if values.dtype.kind in "biuf":
        with np.errstate(over="ignore"):  # what is no float64 is infinite, and refused as such
            return Numeric(values.astype(np.float64))
    return Odd("", f"column '{name}' is an array of {values.dtype}, not numbers or texts")
