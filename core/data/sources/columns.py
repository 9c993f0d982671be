"""Tables as columns: csv, tsv, parquet, jsonl, npz and npy files read into one NumPy array per column.

A column is float64 (NaN where a cell is empty) or object (texts, None where one is empty). Errors name file and line.
"""

import csv
import json
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.data.sources.files import unknown_extension
from core.errors import DataError

Columns = dict[str, NDArray[Any]]
EXTENSIONS = (".csv", ".tsv", ".parquet", ".jsonl", ".npz", ".npy")


def read_columns(path: Path, header: bool = True) -> Columns:
    """The columns of a file, all of one length and at least one row. Raises DataError for anything else."""
    if path.is_dir():
        raise DataError(f"{path}: is a folder; a table is one file ({', '.join(EXTENSIONS)})")
    readers: dict[str, Callable[[], Columns]] = {
        ".csv": lambda: _read_csv(path, ",", header),
        ".tsv": lambda: _read_csv(path, "\t", header),
        ".parquet": lambda: _read_parquet(path),
        ".jsonl": lambda: _read_jsonl(path),
        ".npz": lambda: _read_arrays(path),
        ".npy": lambda: _read_arrays(path),
    }
    if path.suffix.lower() not in readers:
        raise unknown_extension(path, EXTENSIONS)
    columns = readers[path.suffix.lower()]()
    if not columns or not len(next(iter(columns.values()))):
        raise DataError(f"{path}: holds no rows")
    for name, values in columns.items():
        if values.dtype == object:
            _refuse_typos(path, name, values)
    return columns


def bad_cell(values: NDArray[Any], allow_missing: bool = False) -> tuple[int, str] | None:
    """The first unusable cell of a column: its row (from 0) and what it is; None if all are good."""
    if values.dtype == object:
        row = None if allow_missing else next((i for i, value in enumerate(values.tolist()) if value is None), None)
        return None if row is None else (row, "the cell is empty")
    bad = np.isinf(values) if allow_missing else ~np.isfinite(values)
    if not bad.any():
        return None
    row = int(bad.argmax())
    return row, "the number is infinite" if np.isinf(values[row]) else "the cell is empty or NaN"


# --- csv -----------------------------------------------------------------------------------------------------------


def _read_csv(path: Path, delimiter: str, header: bool) -> Columns:
    import pyarrow
    from pyarrow import csv as arrow

    _check_header(path, delimiter, header)
    try:
        table = arrow.read_csv(
            path,
            read_options=arrow.ReadOptions(autogenerate_column_names=not header),
            parse_options=arrow.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=arrow.ConvertOptions(strings_can_be_null=True),
        )
    except pyarrow.ArrowInvalid as error:
        _refuse_ragged(path, delimiter)
        raise DataError(f"{path}: not a valid csv: {str(error).splitlines()[0]}") from None
    return _from_arrow(table)


def _check_header(path: Path, delimiter: str, header: bool) -> None:
    first = _csv_rows(path, delimiter, limit=1)
    if not first:
        raise DataError(f"{path}: the file is empty")
    names = first[0][1]
    if header and all(_is_number(name) for name in names):
        raise DataError(f"{path}: line 1 holds numbers where column names belong; add them, or set data.header=false")
    if header:
        _refuse_duplicates(path, names)


def _refuse_duplicates(path: Path, names: list[str]) -> None:
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise DataError(f"{path}: the column name '{twice}' appears twice; rename one")


def _refuse_ragged(path: Path, delimiter: str) -> None:
    rows = _csv_rows(path, delimiter)
    width = len(rows[0][1])
    for line, cells in rows:
        if len(cells) != width:
            raise DataError(f"{path}: line {line} has {len(cells)} cells, the first line has {width}; mend that line")


def _csv_rows(path: Path, delimiter: str, limit: int | None = None) -> list[tuple[int, list[str]]]:
    """(line number, cells) of each row that is not empty, read the slow way that knows its lines."""
    rows: list[tuple[int, list[str]]] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter)
            for cells in reader:
                if cells:
                    rows.append((reader.line_num, cells))
                if len(rows) == limit:
                    break
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    return rows


def _is_number(text: str | None) -> bool:
    try:
        float(text or "")
    except ValueError:
        return False
    return True


def _refuse_typos(path: Path, name: str, values: NDArray[Any]) -> None:
    """A column of numbers with a stray text in it would silently become hundreds of categories."""
    present = [(row, value) for row, value in enumerate(values.tolist()) if value is not None]
    odd = [(row, value) for row, value in present if not _is_number(value)]
    if odd and len(odd) < len(present) / 2:
        row, value = odd[0]
        raise DataError(
            f"{path}: row {row + 1}, column '{name}': '{value[:40]}' among numbers; mend it or leave the cell empty"
        )


# --- other formats -------------------------------------------------------------------------------------------------


def _from_arrow(table: Any) -> Columns:
    import pyarrow as pa

    columns: Columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type
        if pa.types.is_dictionary(kind):
            column = column.cast(kind.value_type)
            kind = kind.value_type
        if pa.types.is_nested(kind) or pa.types.is_binary(kind):
            raise DataError(f"column '{name}' holds {kind}, not numbers or texts; leave it out of the file")
        if (
            pa.types.is_null(kind)
            or pa.types.is_boolean(kind)
            or pa.types.is_integer(kind)
            or pa.types.is_decimal(kind)
        ):
            # integers past 2^53 are rounded, as in any float64
            columns[name] = _arrow_numbers(column)
        elif pa.types.is_floating(kind):
            columns[name] = _arrow_numbers(column)
        else:
            columns[name] = np.array(column.cast(pa.string()).to_pylist(), dtype=object)
    return columns


def _arrow_numbers(column: Any) -> NDArray[np.float64]:
    import pyarrow as pa

    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    floats = column.cast(pa.float64(), safe=False)
    return np.asarray(floats.fill_null(float("nan")).to_numpy(), dtype=np.float64)


def _read_parquet(path: Path) -> Columns:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable parquet file: {str(error).splitlines()[0]}") from None
    try:
        return _from_arrow(table)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _read_jsonl(path: Path) -> Columns:
    rows: list[dict[str, Any]] = []
    names: dict[str, None] = {}
    for number, record in read_records(path):
        for name, value in record.items():
            if not isinstance(value, int | float | str | None):
                raise DataError(
                    f"{path}: line {number}, key '{name}': a {type(value).__name__}, not a number or a text"
                )
            names[name] = None
        rows.append(record)
    return {name: _json_column([row.get(name) for row in rows]) for name in names}


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


def _json_column(values: list[Any]) -> NDArray[Any]:
    if any(isinstance(value, str) for value in values):
        return np.array(
            [None if v is None else v if isinstance(v, str) else json.dumps(v) for v in values], dtype=object
        )
    return np.array([np.nan if v is None else float(v) for v in values], dtype=np.float64)


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


def _read_arrays(path: Path) -> Columns:
    """Matrices become columns f0, f1, ...; vectors keep their name and come after them."""
    arrays = read_numpy(path)
    matrices = {name: array for name, array in arrays.items() if array.ndim == 2}
    vectors = {name: array for name, array in arrays.items() if array.ndim == 1}
    other = next((name for name, array in arrays.items() if array.ndim not in (1, 2)), None)
    if other is not None or len(matrices) > 1:
        raise DataError(f"{path}: a table is one matrix and vectors, this file holds {_shapes(arrays)}")
    columns: Columns = {}
    for array in matrices.values():
        columns |= {f"f{i}": _numpy_column(path, array[:, i]) for i in range(array.shape[1])}
    columns |= {name: _numpy_column(path, array) for name, array in vectors.items()}
    if len({len(values) for values in columns.values()}) > 1:
        raise DataError(f"{path}: the arrays are of different lengths: {_shapes(arrays)}")
    return columns


def _shapes(arrays: dict[str, NDArray[Any]]) -> str:
    return ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())


def _numpy_column(path: Path, values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype.kind in "biuf":
        return values.astype(np.float64)
    if values.dtype.kind == "U":
        return np.array(values.tolist(), dtype=object)
    raise DataError(f"{path}: holds an array of {values.dtype}, not numbers or texts")
