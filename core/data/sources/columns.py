"""Tables as columns: csv, tsv, parquet, jsonl, npz and npy files, of which those columns are read that are asked for.

Errors name file and line.
"""

import json
import sys
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.data.sources.arrow import columns_of
from core.data.sources.delimited import open_delimited
from core.data.sources.files import unknown_extension
from core.data.sources.frame import Column, Frame, Numeric, Texts, texts_of
from core.data.sources.notation import Odd
from core.errors import DataError

Fetched = Mapping[str, Column | Odd]
EXTENSIONS = (".csv", ".tsv", ".parquet", ".jsonl", ".npz", ".npy")


def open_table_file(path: Path, header: bool = True, delimiter: str | None = None) -> Frame:
    """The columns of a file, to be read as they are asked for. Raises DataError for anything else."""
    if path.is_dir():
        raise DataError(f"{path}: is a folder; a table is one file ({', '.join(EXTENSIONS)})")
    openers: dict[str, Callable[[], Frame]] = {
        ".csv": lambda: open_delimited(path, delimiter, header),
        ".tsv": lambda: open_delimited(path, delimiter, header),
        ".parquet": lambda: _open_parquet(path),
        ".jsonl": lambda: _open_jsonl(path),
        ".npz": lambda: _open_arrays(path),
        ".npy": lambda: _open_arrays(path),
    }
    if path.suffix.lower() not in openers:
        raise unknown_extension(path, EXTENSIONS)
    return openers[path.suffix.lower()]()


def _open_parquet(path: Path) -> Frame:
    import pyarrow
    from pyarrow import parquet

    def fetch(names: Sequence[str], texts: Collection[str], digits: Collection[str]) -> Fetched:
        try:
            table = parquet.read_table(path, columns=list(names))
        except (pyarrow.ArrowException, OSError) as error:
            raise _no_parquet(path, error) from None
        return columns_of(table, texts)

    try:
        return Frame(tuple(parquet.read_schema(path).names), fetch)
    except (pyarrow.ArrowException, OSError) as error:
        raise _no_parquet(path, error) from None


def _no_parquet(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: not a readable parquet file: {str(error).splitlines()[0]}")


def _open_jsonl(path: Path) -> Frame:
    records = read_records(path)

    def fetch(names: Sequence[str], texts: Collection[str], digits: Collection[str]) -> Fetched:
        return {name: _json_column(records, name, name in texts) for name in names}

    return Frame(tuple(dict.fromkeys(name for _, record in records for name in record)), fetch)


def read_records(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """(line number, object) of every line of a jsonl file that is not blank."""
    records = []
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                record = json.loads(line)
                if not isinstance(record, dict):
                    raise DataError(f"{path}: line {number}: not a JSON object but a {type(record).__name__}")
                records.append((number, record))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: line {number}: not valid JSON: {error.msg}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    return records


def _json_column(records: Sequence[tuple[int, dict[str, Any]]], name: str, as_texts: bool) -> Column | Odd:
    values = [record.get(name) for _, record in records]
    for (number, _), value in zip(records, values, strict=True):
        if not isinstance(value, int | float | str | None):
            return Odd("", f"line {number}, key '{name}': a {type(value).__name__}, not a number or a text")
    if as_texts or any(isinstance(value, str) for value in values):
        return Texts.of([None if v is None else v if isinstance(v, str) else json.dumps(v) for v in values])
    try:
        return Numeric(np.array([np.nan if v is None else float(v) for v in values], dtype=np.float64))
    except OverflowError:
        line = next(number for (number, _), v in zip(records, values, strict=True) if abs(v or 0) > sys.float_info.max)
        return Odd("", f"line {line}, key '{name}': a number of more digits than float64 holds")


def read_numpy(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an npz file by name, or of an npy file as `inputs`. Nothing is unpickled."""
    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            is_one = isinstance(content, np.ndarray)
            arrays = {"inputs": content} if is_one else {name: content[name] for name in content.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path}: not a readable NumPy file without Python objects: {str(error).splitlines()[0]}"
        ) from None
    return arrays


def _open_arrays(path: Path) -> Frame:
    """Matrices become columns f0, f1, ...; vectors keep their name and come after them."""
    arrays = read_numpy(path)
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

    return Frame(tuple(columns), fetch)


def _shapes(arrays: dict[str, NDArray[Any]]) -> str:
    return ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())


def _numpy_column(name: str, values: NDArray[Any], as_texts: bool) -> Column | Odd:
    if values.dtype.kind == "U" or (as_texts and values.dtype.kind in "biuf"):
        return texts_of(values)
    if values.dtype.kind in "biuf":
        return Numeric(values.astype(np.float64))
    return Odd("", f"column '{name}' is an array of {values.dtype}, not numbers or texts")
