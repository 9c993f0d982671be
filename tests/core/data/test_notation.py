"""Numbers, dates and times as people write them: read as what they are, or refused with the key that settles it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.data import Data, Numbers, Split, Table, load, open_with
from core.data.preprocess import Category, Number, TableFit
from core.errors import DataError


def write(path: Path, cells: Sequence[str | None], repeat: int = 4, name: str = "x") -> Path:
    """A column of the cells, over and over, and a target beside it; the separator is a tab, which no cell holds."""
    values = list(cells) * repeat
    labels = ["yes" if i % 3 else "no" for i in range(len(values))]
    if path.suffix == ".jsonl":
        rows = [json.dumps({name: value, "y": label}) for value, label in zip(values, labels, strict=True)]
        path.write_text("\n".join(rows))
    elif path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({name: values, "y": labels}), path)
    else:
        rows = [f"{value or ''}\t{label}\n" for value, label in zip(values, labels, strict=True)]
        path.write_text(f"{name}\ty\n" + "".join(rows), encoding="utf-8")
    return path


def read(path: Path, **changes: Any) -> Data:
    return load(Table(path=str(path), split=Split(validation=0.0, test=0.0), **changes), "class")


def values(data: Data) -> list[float]:
    """The first column in the file's order, in its units."""
    fitted = data.preprocess.fitted
    assert isinstance(fitted, TableFit)
    (feature,) = fitted.features
    assert isinstance(feature, Number), feature
    found = data.splits["train"].take(data.splits["train"].addresses(0, None))[0][:, 0].double()
    return (found * feature.std + feature.mean).tolist()


READ: dict[str, tuple[list[str], list[float]]] = {
    "underscore": (["1_000", "3", "50"], [1000, 3, 50]),
    "thousands": (["1,234.5", "12", "-1,234"], [1234.5, 12, -1234]),
    "thousands beside a decimal point": (["1,234", "12.5"], [1234, 12.5]),
    "decimal comma of three digits": (["0,686", "1,234"], [0.686, 1.234]),
    "decimal comma": (["0,5", "12,25", "3"], [0.5, 12.25, 3]),
    "decimal comma and points": (["1.234,5", "7", "1.234"], [1234.5, 7, 1234]),
    "space": (["1 234,5", "12,5"], [1234.5, 12.5]),
    "no-break space": (["1\u00a0234", "12", "\u202f5"], [1234, 12, 5]),
    "apostrophe": (["1'234.50", "3"], [1234.5, 3]),
    "currency": (["$5", "$1,234.50", "-$2"], [5, 1234.5, -2]),
    "currency behind": (["5 €", "3,50 €"], [5, 3.5]),
    "currency code": (["USD 5", "USD 7"], [5, 7]),
    "percent": (["12%", "3.5 %"], [12, 3.5]),
    "accounting": (["(5)", "3"], [-5, 3]),
    "a typographic minus": (["\u22125", "3"], [-5, 3]),
    "dates": (["1970-01-02", "2000-01-01"], [1, 10957]),
    "dates with times": (["1970-01-01 12:00:00", "1970-01-02T00:00:00"], [0.5, 1]),
    "early times": (["9:30", "10:30:30"], [34200, 37830]),
    "times": (["10:00", "00:00:05"], [36000, 5]),
}


@pytest.mark.parametrize("extension", ["tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("case", list(READ))
def test_numbers_in_one_notation_are_read_as_numbers_and_that_is_said(
    case: str, extension: str, tmp_path: Path
) -> None:
    cells, expected = READ[case]
    data = read(write(tmp_path / f"a.{extension}", cells))
    assert values(data) == pytest.approx(expected * 4, rel=1e-5, abs=1e-3)
    (note,) = data.notes
    assert note.startswith("column 'x' holds ") and "data." in note


@pytest.mark.parametrize("extension", ["jsonl", "parquet"])
def test_texts_that_are_numbers_are_numbers_in_every_kind_of_file(extension: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"a.{extension}", ["1", "2.5", "-3e2"])
    data = read(path)
    assert values(data) == pytest.approx([1, 2.5, -300] * 4, abs=1e-3)
    assert data.notes == (
        "column 'x' holds texts that are read as numbers, '2.5' as 2.5; "
        "data.numbers or data.categorical says otherwise",
    )
    fitted = read(path, categorical=("x",)).preprocess.fitted
    assert fitted.features == (Category("x", ("-3e2", "1", "2.5"), True),)  # type: ignore[union-attr]  # a table's


REFUSED: dict[str, tuple[list[str], str]] = {
    "thousands or decimals": (["1,234", "12"], r"row 1, column 'x': '1,234' may be 1\.234 or 1234; .*data\.numbers="),
    "money in thousands or not": (["1.234 €", "2.500 €"], r"'1\.234 €' may be 1\.234 or 1234; .*data\.numbers="),
    "two notations": (["1,5", "1.5", "2.5"], r"row 1, column 'x': '1,5' beside numbers in another notation"),
    "two units": (["$5", "€3", "$7"], "'€3' beside numbers in another unit"),
    "percent and shares": (["12%", "0.5", "0.7"], "'12%' beside numbers in another unit"),
    "a count that is open": (["0", "1", "2", "3+"], r"row 4, column 'x': '3\+' among numbers.*data\.categorical=\[x\]"),
    "German dates": (["31.12.2020", "01.02.2021"], "'31.12.2020' in a column of dates; write dates as 2020-12-31"),
    "American dates": (["12/31/2020", "1/2/2021"], "'12/31/2020' in a column of dates"),
    "named months": (["Jan 5, 2020", "Feb 6, 2020"], "'Jan 5, 2020' in a column of dates"),
    "months": (["2020-01", "2020-02"], "'2020-01' in a column of dates"),
    "noon and midnight": (["10:00 AM", "11:00 PM"], "'10:00 AM' in a column of times"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_may_mean_several_numbers_is_refused_with_the_key_that_settles_it(case: str, tmp_path: Path) -> None:
    cells, message = REFUSED[case]
    path = write(tmp_path / "a.tsv", cells)
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert "data.categorical=[x]" in str(caught.value) and "data.drop=[x]" in str(caught.value)
    fitted = read(path, categorical=("x",)).preprocess.fitted
    assert {*fitted.features[0].values} == {*cells}  # type: ignore[union-attr]  # a category


@pytest.mark.parametrize(
    "cells", [["red", "green"], ["S", "M", "40"], ["Q1", "Q2"], ["5kg", "6kg"], ["1.2.3", "1.2.4"]]
)
def test_texts_stay_texts(cells: list[str], tmp_path: Path) -> None:
    data = read(write(tmp_path / "a.tsv", cells))
    assert isinstance(data.preprocess.fitted.features[0], Category) and not data.notes  # type: ignore[union-attr]  # a table's


def test_the_notation_that_the_user_names_is_the_one_that_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", ["1.234", "12", "2.000"])
    assert values(read(path)) == pytest.approx([1.234, 12, 2] * 4, rel=1e-4)
    german = read(path, numbers=Numbers(decimal=",", thousands="."))
    assert values(german) == pytest.approx([1234, 12, 2000] * 4, rel=1e-4)
    path = write(tmp_path / "b.tsv", ["1,234", "12"])
    assert values(read(path, numbers=Numbers(thousands=","))) == pytest.approx([1234, 12] * 4, rel=1e-4)


def test_points_in_a_file_with_decimal_commas_may_stand_between_thousands(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x;k;y\n" + "".join(f"{i},5;{1 + i % 3}.234;{'no' if i % 2 else 'yes'}\n" for i in range(20)))
    with pytest.raises(DataError, match=r"row 1, column 'k': '1\.234' may be 1\.234 or 1234; .*data\.numbers="):
        read(path)
    data = read(path, numbers=Numbers(decimal=",", thousands="."), drop=("x",))
    assert sorted(set(map(round, values(data)))) == [1234, 2234, 3234]
    path.write_text("x;k;y\n" + "".join(f"{i},5;{i / 8};{'no' if i % 2 else 'yes'}\n" for i in range(20)))
    assert read(path).spec.shape == (2,)  # 0.125 has no thousands


@pytest.mark.parametrize("mark", [";", "\t", "|", ","])
@pytest.mark.parametrize("extension", ["csv", "tsv"])
def test_what_stands_between_cells_is_recognized(mark: str, extension: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{extension}"
    cell = "{},5" if mark == ";" else "{}.5"
    rows = [f"{cell.format(i)}{mark}{'no' if i % 2 else 'yes'}\n" for i in range(15)]
    path.write_text(f"x{mark}y\n" + "".join(rows))
    data = read(path)
    assert values(data) == pytest.approx([i + 0.5 for i in range(15)], abs=1e-3)
    is_own = mark == {"csv": ",", "tsv": "\t"}[extension]
    assert any("between the cells; data.delimiter" in note for note in data.notes) != is_own
    assert not any("between the cells" in note for note in read(path, delimiter=mark).notes)


@pytest.mark.parametrize(
    "trained, new, expected",
    [
        (["0,5", "12,25"], "1,234", 1.234),  # which alone may be 1234 as well
        (["1,234.5", "12"], "1,234", 1234),
        (["$1,234.50", "$12"], "7", 7),
        (["2000-01-01", "2000-01-03"], "2000-01-05", 10961),
    ],
)
def test_a_model_reads_one_row_in_the_notation_of_its_training(
    trained: list[str], new: str, expected: float, tmp_path: Path
) -> None:
    preprocess = read(write(tmp_path / "a.tsv", trained)).preprocess
    preprocess.save(tmp_path)
    preprocess = type(preprocess).load(tmp_path)
    feature = preprocess.fitted.features[0]  # type: ignore[union-attr]  # a table's
    data = open_with(preprocess, Table(path=str(write(tmp_path / "b.tsv", [new], 1))), targets=False)
    (found,) = data.splits["test"].take(data.splits["test"].addresses(0, None))[0][:, 0].double()
    assert float(found) * feature.std + feature.mean == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("trained, new", [(["0,5", "1,5"], "0.5"), (["12%", "3%"], "0.5"), (["0.5", "2"], "1,5")])
def test_a_model_refuses_numbers_in_another_notation(trained: list[str], new: str, tmp_path: Path) -> None:
    preprocess = read(write(tmp_path / "a.tsv", trained)).preprocess
    other = Table(path=str(write(tmp_path / "b.tsv", [new], 1)))
    with pytest.raises(DataError, match=rf"row 1, column 'x': '{new}' is no number.* the model was trained on numbers"):
        open_with(preprocess, other)


def test_dates_of_parquet_are_days_and_of_a_model_nothing_else(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    days = np.arange("2000-01-01", "2000-01-21", dtype="datetime64[D]")
    parquet.write_table(pyarrow.table({"x": days, "y": ["a", "b"] * 10}), tmp_path / "a.parquet")
    data = read(tmp_path / "a.parquet")
    assert values(data) == pytest.approx(np.arange(10957, 10977), abs=1e-2)
    assert data.notes == ("column 'x' holds dates, read as days since 1970-01-01; data.drop leaves them out",)
    parquet.write_table(pyarrow.table({"x": [1.0, 2.0], "y": ["a", "b"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="column 'x' holds numbers, the model was trained on dates"):
        open_with(data.preprocess, Table(path=str(tmp_path / "b.parquet")))
