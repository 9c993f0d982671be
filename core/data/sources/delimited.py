"""Text files of rows and cells: csv and its like, with commas, semicolons, tabs or bars between the cells."""

import csv
import mmap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.data.sources.arrow import columns_of
from core.data.sources.contents import byte_file, is_packed, kind_of, not_utf8, text_file
from core.data.sources.frame import Column, Frame
from core.data.sources.notation import Odd
from core.errors import DataError, blamed

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
BLOCK, LARGEST_BLOCK = 1 << 20, (1 << 31) - 1  # bytes that pyarrow reads at a time, at least a row
SAMPLE = 20  # rows that show what stands between cells


def open_delimited(path: Path, delimiter: str | None, header: bool) -> Frame:
    """The table of a text file. `delimiter` None recognizes it; the extension's own is tried first. DataError."""
    own = "\t" if kind_of(path) == ".tsv" else ","
    mark = delimiter or _recognized(path, own)
    first = _rows(path, mark, limit=SAMPLE)
    if not first:
        raise DataError(f"{path}: the file is empty")
    names = tuple(first[0][1]) if header else tuple(f"f{i}" for i in range(len(first[0][1])))
    # of lines that end with a mark, the last cell has no name, not the first
    is_short = header and _is_short([len(cells) for _, cells in first]) and any(cells[-1] for _, cells in first[1:])
    if header and all(_is_number(name) for name in names):
        raise DataError(f"{path}: line 1 holds numbers where column names belong; add them, or set data.header=false")
    if is_short:
        names = ("", *names)
    _refuse_duplicates(path, names)
    notes: tuple[str, ...] = ()
    if mark != own and delimiter is None:
        notes = (f"read with {DELIMITERS[mark]} between the cells; data.delimiter says otherwise",)

    def fetch(wanted: Sequence[str], texts: Collection[str], digits: Collection[str]) -> Mapping[str, Column | Odd]:
        table = written.read(wanted, {*texts, *digits})
        with blamed(DataError, str(path), "not a valid csv"):
            return columns_of(table, {*texts, *digits})

    written = Written(path, mark, header, names if is_short else ())
    return Frame(names, fetch, notes, written.words_of_empties)


@dataclass(frozen=True)
class Written:
    """How a file is written. names: of its columns where its first line does not say all of them."""

    path: Path
    delimiter: str
    header: bool
    names: tuple[str, ...]

    def read(self, wanted: Sequence[str], texts: Collection[str], as_written: bool = False) -> Any:
        """A pyarrow table of the wanted columns, some as texts. `as_written`: no text is an empty cell. DataError."""
        import pyarrow
        from pyarrow import csv as arrow

        parse = arrow.ParseOptions(delimiter=self.delimiter, newlines_in_values=_may_have_quotes(self.path))
        convert = arrow.ConvertOptions(
            strings_can_be_null=not as_written,
            include_columns=list(wanted),
            column_types={name: pyarrow.string() for name in texts},
        )
        options: dict[str, Any] = {"autogenerate_column_names": not self.header}
        if self.names:
            options = {"column_names": self.names, "skip_rows": 1}
        table, block = None, BLOCK
        while table is None:
            try:
                with byte_file(self.path) as file:
                    source = file if is_packed(self.path) else self.path  # a path is read on several threads
                    read = arrow.ReadOptions(block_size=block, **options)
                    table = arrow.read_csv(source, read, parse, convert)
            except DataError as error:
                said = str(error.__cause__)
                if "straddling" not in said or block >= LARGEST_BLOCK:
                    if "UTF8" in said:
                        raise not_utf8(self.path) from None
                    _refuse_ragged(self.path, self.delimiter, len(self.names))
                    raise DataError(f"{self.path}: not a valid csv: {said.splitlines()[0]}") from None
                block = min(16 * block, LARGEST_BLOCK)  # a row, with cells of megabytes, is larger than that
        if any(pyarrow.types.is_binary(column.type) for column in table.columns):
            raise not_utf8(self.path)
        return table

    def words_of_empties(self, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """By column, what stands in its empty cells: NA, NULL and their like."""
        import pyarrow
        from pyarrow import compute
        from pyarrow import csv as arrow

        found, words = dict[str, tuple[str, ...]](), pyarrow.array(sorted({*arrow.ConvertOptions().null_values} - {""}))
        table = self.read(names, names, as_written=True)
        for name, column in zip(table.column_names, table.columns, strict=True):
            if there := column.filter(compute.is_in(column, words)).unique().to_pylist():
                found[name] = tuple(sorted(there))
        return found


def _may_have_quotes(path: Path) -> bool:
    """Only between quotes can a cell hold a new line, and reading is twice as fast where none can."""
    if is_packed(path):
        return True
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(b'"') >= 0
    except (OSError, ValueError):  # a file system without maps of files
        return True


def _recognized(path: Path, own: str) -> str:
    """What stands between the cells: the mark that gives the most columns, as many in each of the first rows."""
    widths = {own: 1}
    for mark in dict.fromkeys((own, *DELIMITERS)):
        found = [len(cells) for _, cells in _rows(path, mark, limit=SAMPLE)]
        if len(set(found)) == 1 or _is_short(found):
            widths[mark] = found[0]
    return max(widths, key=lambda mark: widths[mark])  # of two that give as many the first


def _is_short(widths: Sequence[int]) -> bool:
    """Whether the first line has no name for the column of row names, as R writes them."""
    return len(set(widths[1:])) == 1 and widths[0] == widths[1] - 1


def _refuse_duplicates(path: Path, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{path}: the column name '{name}' appears twice; rename one")
        seen.add(name)


def _refuse_ragged(path: Path, delimiter: str, width: int) -> None:
    """Names the first line of another width; 0 is that of the first line."""
    rows = _rows(path, delimiter)
    whose, width = ("others have", width) if width else ("the first line has", len(rows[0][1]))
    for line, cells in rows[1:]:
        if len(cells) != width:
            raise DataError(f"{path}: line {line} has {len(cells)} cells, {whose} {width}; mend that line")


def _rows(path: Path, delimiter: str, limit: int | None = None) -> list[tuple[int, list[str]]]:
    """(line number, cells) of each row that is not empty, read the slow way that knows its lines."""
    csv.field_size_limit(LARGEST_BLOCK)  # a text in a cell may be long
    rows: list[tuple[int, list[str]]] = []
    with text_file(path, newline="") as file:
        reader: Any = csv.reader(file, delimiter=delimiter)
        for cells in reader:
            if cells:
                rows.append((reader.line_num, cells))
            if len(rows) == limit:
                break
    return rows


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
