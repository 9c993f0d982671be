"""A table whose columns are read as they are asked for: as texts, as numbers, or as what their cells are."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from core.data.config import Numbers
from core.data.sources.notation import PLAIN, Form, Odd, form_of, grouped_by_points

TEXTS: Literal["texts"] = "texts"
As = Literal["texts"] | Form | None  # how a column is read: as texts, in one form, or as what its cells are
_TRUTH = {"true": "1", "false": "0"}


@dataclass(frozen=True)
class Numeric:
    """A column of numbers [N], NaN where a cell is empty; `form` is how they were written.

    empties: the words, such as NA, that stand in empty cells.
    """

    values: NDArray[np.float64]
    form: Form = PLAIN
    empties: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: NDArray[np.int64] | slice) -> "Numeric":
        return replace(self, values=self.values[rows])

    def bad_cell(self, allow_missing: bool = False) -> tuple[int, str] | None:
        """The first unusable cell: its row (from 0) and what it is; None if all are good."""
        bad = np.abs(self.values) > LARGEST
        if not allow_missing:
            bad |= np.isnan(self.values)
        if not bad.any():
            return None
        row = int(bad.argmax())
        if np.isnan(self.values[row]):
            return row, f"the cell is empty or NaN{_read_so(self.empties)}"
        what = "is infinite" if np.isinf(self.values[row]) else f"{self.values[row]:g} is too large for float32"
        return row, f"the number {what}"


LARGEST = float(np.finfo(np.float32).max)  # models calculate in float32


@dataclass(frozen=True)
class Texts:
    """A column of texts: for each row [N] the place of its text in `distinct`, or -1 where the cell is empty.

    empties: as of `Numeric`.
    """

    distinct: tuple[str, ...]
    places: NDArray[np.int64]
    empties: tuple[str, ...] = ()

    @classmethod
    def of(cls, cells: Sequence[str | None]) -> "Texts":
        """The texts of rows; None and "" are empty cells."""
        known: dict[str, int] = {}
        places = [known.setdefault(cell, len(known)) if cell else -1 for cell in cells]
        return cls(tuple(known), np.array(places, np.int64))

    @classmethod
    def named(cls, names: Sequence[str | None], places: NDArray[np.int64]) -> "Texts":
        """The texts of rows that are given as places in `names`, or -1; a name may be empty, or stand there twice."""
        short = cls.of(names)
        return cls(short.distinct, np.append(short.places, -1)[places])

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, rows: NDArray[np.int64] | slice) -> "Texts":
        return replace(self, places=self.places[rows])

    @property
    def present(self) -> list[str]:
        """Those of the different texts that stand in a row, in no particular order."""
        return [self.distinct[i] for i in np.flatnonzero(self.counts)]

    @property
    def counts(self) -> NDArray[np.int64]:
        """In how many rows each of the different texts stands."""
        return np.bincount(self.places[self.places >= 0], minlength=len(self.distinct))

    def take(self, values: NDArray[Any], empty: Any) -> NDArray[Any]:
        """[N]: for each row the value of its text, of one value per different text."""
        return np.append(values, np.array([empty], values.dtype))[self.places]

    def bad_cell(self, allow_missing: bool = False) -> tuple[int, str] | None:
        """As of `Numeric`."""
        empty = self.places < 0
        return (
            None
            if allow_missing or not empty.any()
            else (int(empty.argmax()), f"the cell is empty{_read_so(self.empties)}")
        )


def _read_so(words: Sequence[str]) -> str:
    return f" ({', '.join(words)} is read so)" if words else ""


Column = Numeric | Texts
Columns = dict[str, Column]


@dataclass(frozen=True)
class Problem:
    """What is wrong with a column, and how it is settled: `cure` has a place for the names of all such columns."""

    column: str
    what: str
    cure: str


@dataclass(frozen=True)
class Sheet:
    """Columns as they were read, all of one length and at least one row."""

    columns: Columns
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Frame:
    """names: of all columns. notes: for the user.

    fetch: reads some; those of the second argument as texts, and of those of the third what was written, if the file
    holds no numbers but their digits. Odd: a column of neither numbers nor texts, with the whole sentence in `why`.
    empties: of columns with empty cells, which words stand there.
    """

    names: tuple[str, ...]
    fetch: Callable[[Sequence[str], Collection[str], Collection[str]], Mapping[str, Column | Odd]]
    notes: tuple[str, ...] = ()
    empties: Callable[[Sequence[str]], Mapping[str, tuple[str, ...]]] = lambda names: {}

    def read(self, wanted: Mapping[str, As], numbers: Numbers | None = None) -> Sheet:
        """The wanted columns, and nothing of the others. `numbers`: how the user says that numbers are written.

        A column that cannot be read as it is wanted is a problem of the sheet, and stands there as texts if it can.
        """
        texts = {name for name, way in wanted.items() if way == TEXTS}
        digits = {name for name, way in wanted.items() if numbers or way not in (TEXTS, None, PLAIN)}
        found = self.fetch(list(wanted), texts, digits)
        columns, problems, told = Columns(), list[Problem](), dict[Form, list[tuple[str, str]]]()
        for name, column in found.items():
            way = wanted[name]
            if isinstance(column, Odd):
                problems.append(Problem(name, column.why, "leave such columns out with data.drop=[{}]"))
                continue
            read = column if way == TEXTS else _as(column, way, numbers) if way else _as_it_is(column, numbers)
            if isinstance(read, Odd):
                problems.append(_problem(name, column, read, known=way is not None))
                read = column
            columns[name] = read
            if way is None and isinstance(read, Numeric) and (example := _example(column, read, numbers)):
                told.setdefault(read.form, []).append((name, example))
        if any(form.decimal == "," for form in told):
            problems += self._in_doubt([n for n, way in wanted.items() if way is None and n in columns], columns)
        notes = [_note(form, about) for form, about in told.items()]
        gaps = [name for name, column in columns.items() if column.bad_cell() is not None]
        words = self.empties(gaps) if gaps else {}
        columns |= {name: replace(columns[name], empties=there) for name, there in words.items()}
        return Sheet(columns, tuple(problems), (*notes, *_missing(words)))

    def _in_doubt(self, names: Sequence[str], columns: Columns) -> list[Problem]:
        """Of a file with decimal commas: columns such as 1.234, which by itself is a number with a point."""
        broken = [
            name
            for name in names
            if isinstance(read := columns[name], Numeric)
            and read.form == PLAIN
            and (read.values != np.floor(read.values)).any()
        ]
        problems = []
        for name, column in self.fetch(broken, (), broken).items() if broken else ():
            odd = grouped_by_points(column.distinct) if isinstance(column, Texts) else None
            if isinstance(column, Texts) and odd:
                problems.append(_problem(name, column, odd, known=False))
        return problems


def texts_of(values: NDArray[Any]) -> Texts:
    """The cells of an array as the texts that Python writes for them; a whole number without a point."""
    if values.dtype.kind in "UO":
        return Texts.of([written(value) for value in values.tolist()])
    distinct, places = np.unique(values, return_inverse=True)
    return Texts.named([written(value) for value in distinct.tolist()], places)


def written(value: Any) -> str | None:
    """A value as a text; None for an empty one."""
    if isinstance(value, float) and not isinstance(value, bool):
        return None if math.isnan(value) else str(int(value)) if value.is_integer() else repr(value)
    return None if value is None else str(value)


# --- what a column is ----------------------------------------------------------------------------------------------


def _as_it_is(column: Column, numbers: Numbers | None) -> Column | Odd:
    """Numbers where all cells are numbers, dates or times in one notation; else texts."""
    if isinstance(column, Numeric):
        return column
    counts, distinct = column.counts, _untruthed(column.distinct)
    here = np.flatnonzero(counts)
    form = form_of([distinct[i] for i in here], counts[here], numbers)
    if form is None or isinstance(form, Odd):
        return form or column
    return Numeric(column.take(form.values(distinct), np.nan), form)


def _as(column: Column, form: Form, numbers: Numbers | None) -> Column | Odd:
    """Numbers in the form that a model knows; `numbers` says that they are written in another one here."""
    if isinstance(column, Numeric):
        same = column.form.kind == form.kind
        return column if same else Odd("", f"holds {column.form.kind}s, the model was trained on {form.kind}s")
    if numbers and form.kind == "number":
        form = Form("number", numbers.decimal, numbers.thousands, form.unit)
    values = column.take(form.values(_untruthed(column.distinct)), np.nan)
    bad = np.isnan(values) & (column.places >= 0)
    if bad.any():
        row = int(bad.argmax())
        how = "" if form == PLAIN else f" {_described(form)}"
        return Odd(
            column.distinct[column.places[row]], f"is no {form.kind}{how}, and the model was trained on {form.kind}s"
        )
    return Numeric(values, form)


def _untruthed(texts: Sequence[str]) -> list[str]:
    """True and false as 1 and 0, where nothing else is among them."""
    if any(text.lower() not in _TRUTH and text not in ("0", "1") for text in texts):
        return list(texts)
    return [_TRUTH.get(text.lower(), text) for text in texts]


def _described(form: Form) -> str:
    if form.kind != "number":
        return "as ISO 8601 writes it"
    group = f", '{form.thousands}' between groups of digits" if form.thousands else ""
    unit = f" and the unit {form.unit}" if form.unit else ""
    return f"with the decimal mark '{form.decimal}'{group}{unit}"


def _problem(name: str, column: Column, odd: Odd, known: bool) -> Problem:
    if isinstance(column, Numeric):
        return Problem(name, f"column '{name}' {odd.why}", "")
    row = int((column.places == column.distinct.index(odd.text)).argmax())
    cure = "" if known else "take columns as texts with data.categorical=[{}], or leave them out with data.drop=[{}]"
    return Problem(name, f"row {row + 1}, column '{name}': '{odd.text[:40]}' {odd.why}", cure)


def _example(column: Column, read: Numeric, numbers: Numbers | None) -> str:
    """A cell of a column that was read in a notation, and its number; empty where there is nothing to tell."""
    if isinstance(column, Numeric):
        return "" if read.form == PLAIN else read.form.kind
    if numbers and read.form.kind == "number":
        return ""
    shows = next((text for text in column.distinct if not text.strip().isdigit()), column.distinct[0])
    row = int((column.places == column.distinct.index(shows)).argmax())
    return f"'{shows[:40]}' as {read.values[row]:.15g}"


def _note(form: Form, about: Sequence[tuple[str, str]]) -> str:
    names = ", ".join(f"'{name}'" for name, _ in about)
    who = f"columns {names} hold" if len(about) > 1 else f"column {names} holds"
    if form.kind == "date":
        return f"{who} dates, read as days since 1970-01-01; data.drop leaves them out"
    if form.kind == "time":
        return f"{who} times of day, read as seconds since midnight; data.drop leaves them out"
    return f"{who} texts that are read as numbers, {about[0][1]}; data.numbers or data.categorical says otherwise"


def _missing(words: Mapping[str, Sequence[str]]) -> list[str]:
    """A note for each word that is read as an empty cell: `NA is read as an empty cell, in columns 'a', 'b'`."""
    columns: dict[str, list[str]] = {}
    for name, there in words.items():
        for word in there:
            columns.setdefault(word, []).append(f"'{name}'")
    return [
        f"{word} is read as an empty cell, in column{'s' * (len(names) > 1)} {', '.join(names)}"
        for word, names in columns.items()
    ]
