"""Text files of rows and cells: csv and its like, with commas, semicolons, tabs or bars between the cells."""

import csv
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.data.sources.arrow import columns_of
from core.data.sources.frame import Column, Frame
from core.data.sources.notation import Odd
from core.errors import DataError

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
SAMPLE = 20  # rows that show what stands between cells


def open_delimited(path: Path, delimiter: str | None, header: bool) -> Frame:
    """The table of a text file. `delimiter` None recognizes it; the extension's own is tried first. DataError."""
    own = "\t" if path.suffix.lower() == ".tsv" else ","
    mark = delimiter or _recognized(path, own)
    first = _rows(path, mark, limit=1)
    if not first:
        raise DataError(f"{path}: the file is empty")
    names = tuple(first[0][1]) if header else tuple(f"f{i}" for i in range(len(first[0][1])))
    if header and all(_is_number(name) for name in names):
        raise DataError(f"{path}: line 1 holds numbers where column names belong; add them, or set data.header=false")
    _refuse_duplicates(path, names)
    notes: tuple[str, ...] = ()
    if mark != own and delimiter is None:
        notes = (f"read with {DELIMITERS[mark]} between the cells; data.delimiter says otherwise",)

    def fetch(wanted: Sequence[str], texts: Collection[str], digits: Collection[str]) -> Mapping[str, Column | Odd]:
        return _fetch(path, mark, header, wanted, {*texts, *digits})

    return Frame(names, fetch, notes)


def _fetch(
    path: Path, delimiter: str, header: bool, names: Sequence[str], texts: Collection[str]
) -> Mapping[str, Column | Odd]:
    import pyarrow
    from pyarrow import csv as arrow

    try:
        table = arrow.read_csv(
            path,
            read_options=arrow.ReadOptions(autogenerate_column_names=not header),
            parse_options=arrow.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=arrow.ConvertOptions(
                strings_can_be_null=True,
                include_columns=list(names),
                column_types={name: pyarrow.string() for name in texts},
            ),
        )
    except (pyarrow.ArrowException, OSError) as error:
        _refuse_ragged(path, delimiter)
        raise DataError(f"{path}: not a valid csv: {str(error).splitlines()[0]}") from None
    return columns_of(table, texts)


def _recognized(path: Path, own: str) -> str:
    """What stands between the cells: the mark that gives the most columns, as many in each of the first rows."""
    widths = {own: 1}
    for mark in dict.fromkeys((own, *DELIMITERS)):
        found = {len(cells) for _, cells in _rows(path, mark, limit=SAMPLE)}
        if len(found) == 1:
            widths[mark] = found.pop()
    return max(widths, key=lambda mark: widths[mark])  # of two that give as many the first


def _refuse_duplicates(path: Path, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{path}: the column name '{name}' appears twice; rename one")
        seen.add(name)


def _refuse_ragged(path: Path, delimiter: str) -> None:
    rows = _rows(path, delimiter)
    width = len(rows[0][1])
    for line, cells in rows:
        if len(cells) != width:
            raise DataError(f"{path}: line {line} has {len(cells)} cells, the first line has {width}; mend that line")


def _rows(path: Path, delimiter: str, limit: int | None = None) -> list[tuple[int, list[str]]]:
    """(line number, cells) of each row that is not empty, read the slow way that knows its lines."""
    rows: list[tuple[int, list[str]]] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader: Any = csv.reader(file, delimiter=delimiter)
            for cells in reader:
                if cells:
                    rows.append((reader.line_num, cells))
                if len(rows) == limit:
                    break
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    return rows


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
