"""Numbers as people write them: 1,234.5; 1.234,5; 1 234; 1_000; $5; 12 %; and dates and times of day.

A column is read in the one notation in which all of its cells are numbers. Where two notations give different numbers
(1,234 alone may be 1234 or 1.234) nothing is guessed: the user says it with data.numbers.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from core.data.config import Numbers

MANY = 10  # different numbers in a column whose other cells are texts: more are hardly the names of categories
_SPACES = dict.fromkeys(map(ord, "\u00a0\u202f\u2009\u2007"), " ") | {ord("\u2212"): "-", ord("\u2019"): "'"}
_CODES = r"USD|EUR|GBP|JPY|CHF|CNY|INR|CAD|AUD|SEK|NOK|DKK|PLN|BRL|KRW|RUB"
_THOUSANDS = (",", ".", " ", "'", "_")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_BODY = re.compile(r"[+-]?[\d.,][\d.,' _]*([eE][+-]?\d+)?")
_DATE = re.compile(
    r"(\d{4}([./-])(0?[1-9]|1[0-2])(\2[0-3]?\d)?|[0-3]?\d([./-])[0-3]?\d\5(\d{4}|\d{2})"
    r"|(\d{1,2}\.? )?[A-Z][a-z]{2,8}\.?,? (\d{1,2},? )?\d{4}|\d{1,2}[- ][A-Za-z]{3}[- ](\d{4}|\d{2}))"
    r"([T ,]+\d{1,2}:\d{2}.*)?"
)
_TIME = re.compile(r"\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?( ?[AaPp]\.?[Mm]\.?)?")


@dataclass(frozen=True)
class Form:
    """How the cells of a column became numbers. date: days since 1970-01-01; time: seconds since midnight.

    unit: a sign beside each number, such as $ or %, that is left out.
    """

    kind: Literal["number", "date", "time"] = "number"
    decimal: str = "."
    thousands: str = ""
    unit: str = ""

    def values(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The numbers; NaN for a text that is none in this form."""
        if self.kind != "number":
            read = _days if self.kind == "date" else _seconds
            return np.array([read(text) for text in texts], np.float64)
        bare = [_bare(text) for text in texts]
        if self.unit == "%":  # 12 beside 12% may be 12 or 1200 of them
            bare = [(body, unit) if unit == "%" else ("", unit) for body, unit in bare]
        else:
            bare = [(body, unit) if unit in ("", self.unit) else ("", unit) for body, unit in bare]
        return _values([body for body, _ in bare], self.decimal, self.thousands)


PLAIN = Form()


@dataclass(frozen=True)
class Odd:
    """Why a column that looks like numbers, dates or times is not read as such; `text` is one cell of it."""

    text: str
    why: str


def form_of(texts: Sequence[str], counts: NDArray[np.int64], numbers: Numbers | None = None) -> Form | Odd | None:
    """How to read a column of these different texts, which stand in so many cells; None if they are just texts.

    `numbers` is the notation that the user has named. Odd: most of it looks like numbers or dates, and not all can be
    read, or in more than one way.
    """
    if not texts or (len(texts) > 1000 and not any(map(_looks, texts[:1000]))):
        return None
    return _clock(texts, counts) or _numbers(texts, counts, numbers)


def plain_numbers(texts: Sequence[str]) -> NDArray[np.float64] | None:
    """The numbers that all of these texts are in the notation of programs; None if one is none."""
    return np.array(list(map(float, texts))) if all(_NUMBER.fullmatch(text.strip()) for text in texts) else None


def _looks(text: str) -> bool:
    bare, text = _bare(text)[0], text.strip()
    return bool(_BODY.fullmatch(bare) or _DATE.fullmatch(text) or _TIME.fullmatch(text))


# --- numbers -------------------------------------------------------------------------------------------------------


def _numbers(texts: Sequence[str], counts: NDArray[np.int64], numbers: Numbers | None) -> Form | Odd | None:
    bare = [_bare(text) for text in texts]
    bodies = [body for body, _ in bare]
    found = set("".join(bodies))
    marks = ((".", ""), (",", ""), *((d, t) for t in _THOUSANDS for d in ".," if t in found and d != t))
    if numbers is not None:
        marks = ((numbers.decimal, numbers.thousands),)
    readings = {mark: _values(bodies, *mark) for mark in marks}
    good = {mark: values for mark, values in readings.items() if not np.isnan(values).any()}
    is_number = ~np.isnan(np.stack(list(readings.values()))).all(axis=0)
    if not is_number.all():
        share = counts[is_number].sum() / counts.sum()
        if share > 0.5 or (is_number.mean() > 0.5 and is_number.sum() > MANY):
            return Odd(texts[int((~is_number).argmax())], "among numbers; mend it or leave the cell empty")
        return None
    units = sorted({unit for _, unit in bare})
    if len(units) > 1 and ("%" in units or "" not in units or len(units) > 2):
        return Odd(
            texts[[unit for _, unit in bare].index(units[1])], "beside numbers in another unit; give all the same"
        )
    if not good:
        # the first cell that the reading which reads most of them does not read
        best = min(readings.values(), key=lambda values: int(np.isnan(values).sum()))
        what = texts[int(np.isnan(best).argmax())]
        return Odd(what, "beside numbers in another notation; write all in one")
    (mark, values), *others = good.items()
    # 1.234 is a number as programs write it; 1.234 EUR was written by a person, and may be of thousands
    is_plain = mark == (".", "") and units[-1] in ("", "%")
    for _, other in () if is_plain else others:
        if (differs := values != other).any():
            i = int(differs.argmax())
            return _ambiguous(texts[i], values[i], other[i])
    return Form("number", *mark, units[-1])


def grouped_by_points(texts: Sequence[str]) -> Odd | None:
    """What to say of numbers in a file with decimal commas, if each of those with a point may be one of thousands."""
    pointed = [text for text in texts if "." in text]
    values = _values([_bare(text)[0] for text in pointed], ",", ".")
    if not pointed or np.isnan(values).any():
        return None
    return _ambiguous(pointed[0], float(pointed[0]), values[0])


def _ambiguous(text: str, one: float, other: float) -> Odd:
    low, high = sorted((one, other))
    return Odd(text, f"may be {low:.15g} or {high:.15g}; say it with data.numbers={{decimal: ',', thousands: '.'}}")


def _values(bodies: Sequence[str], decimal: str, thousands: str) -> NDArray[np.float64]:
    """NaN where a body is no number in this notation."""
    point = re.escape(decimal)
    group = rf"[1-9]\d{{0,2}}({re.escape(thousands)}\d{{2,3}})*{re.escape(thousands)}\d{{3}}|" if thousands else ""
    number = re.compile(rf"[+-]?(({group}\d+)({point}\d*)?|{point}\d+)([eE][+-]?\d+)?")
    drop = str.maketrans({decimal: ".", **({thousands: None} if thousands else {})})
    return np.array([float(b.translate(drop)) if number.fullmatch(b) else np.nan for b in bodies], np.float64)


def _bare(text: str) -> tuple[str, str]:
    """A number without what stands around it, and its unit: a currency or %. (5) is -5, as accountants write."""
    text = text.translate(_SPACES).strip()
    if len(text) > 40:
        return "", ""
    if text.startswith("(") and text.endswith(")"):
        text = f"-{text[1:-1].strip()}"
    match = re.fullmatch(rf"([+-]?) ?((?:{_CODES})|[^\d\s.,+-]?) ?([+-]?[\d.,].*)", text)
    if match and match[2] and (len(match[2]) > 1 or unicodedata.category(match[2]) == "Sc"):
        return match[1] + match[3], match[2]
    match = re.fullmatch(rf"(.*[\d.,]) ?({_CODES}|[^\d\s.,])", text)
    if match and (len(match[2]) > 1 or match[2] == "%" or unicodedata.category(match[2]) == "Sc"):
        return match[1], match[2]
    return text, ""


# --- dates and times -----------------------------------------------------------------------------------------------


def _clock(texts: Sequence[str], counts: NDArray[np.int64]) -> Form | Odd | None:
    """Dates and times as ISO 8601 writes them are read. Others mean different days in different countries."""
    for kind, pattern, read, cure in (
        ("date", _DATE, _days, "write dates as 2020-12-31, which are read as days"),
        ("time", _TIME, _seconds, "write times as 23:59:59, which are read as seconds"),
    ):
        is_one = np.array([bool(pattern.fullmatch(text.strip())) for text in texts])
        if counts[is_one].sum() <= counts.sum() / 2:
            continue
        if all(_NUMBER.fullmatch(text.strip()) for text in texts):
            return None  # 2020.12 is a number as well
        odd = next((text for text in texts if np.isnan(read(text))), None)
        return Form(kind) if odd is None else Odd(odd, f"in a column of {kind}s; {cure}")  # type: ignore[arg-type]  # one of the two above
    return None


def _days(text: str) -> float:
    """Days since 1970-01-01, of UTC where nothing else is said; NaN for what is no date."""
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        return np.nan
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() / 86400


def _seconds(text: str) -> float:
    try:
        found = time.fromisoformat(text.strip().rjust(5, "0"))  # 9:53 is 09:53
    except ValueError:
        return np.nan
    return found.hour * 3600 + found.minute * 60 + found.second + found.microsecond / 1e6
