"""Only the columns that are used are read and checked; a model says what its columns are."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.data import Data, Table, load, open_with
from core.errors import DataError


def write(path: Path, names: str, *rows: str, repeat: int = 1) -> Path:
    path.write_text(names + "\n" + "".join(f"{row}\n" for row in rows * repeat))
    return path


def prepared(data: Data) -> list[list[float]]:
    examples = data.splits["test"]
    return examples.take(examples.addresses(0, None))[0].tolist()  # type: ignore[no-any-return]  # torch's tolist is Any


def with_nested(path: Path) -> Path:
    """A parquet table that has what a table here cannot hold, beside what it can."""
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(
        pyarrow.table({"a": [0.5 * i for i in range(30)], "d": [[1]] * 30, "e": [b"\xff"] * 30, "y": ["u", "v"] * 15}),
        path,
    )
    return path


@pytest.mark.parametrize("changes", [{"columns": ("a",)}, {"drop": ("d", "e")}])
def test_a_column_that_is_not_used_may_hold_anything(changes: dict[str, Any], tmp_path: Path) -> None:
    assert load(Table(path=str(with_nested(tmp_path / "a.parquet")), **changes), "class").spec.shape == (1,)
    rows = [f"{i},3+,name{i},{'no' if i % 2 else 'yes'}" if i % 4 else f"{i},{i},,yes" for i in range(400)]
    table = write(tmp_path / "a.csv", "a,d,e,y", *rows)
    assert load(Table(path=str(table), **changes), "class").spec.shape == (1,)
    lines = [{"a": i, "d": [1], "e": {"f": None}, "y": "uv"[i % 2]} for i in range(30)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert load(Table(path=str(tmp_path / "a.jsonl"), **changes), "class").spec.shape == (1,)
    np.savez(tmp_path / "a.npz", a=np.arange(30), d=np.zeros(30, "f4,i4"), e=np.zeros(30, complex), y=np.arange(30) % 2)
    assert load(Table(path=str(tmp_path / "a.npz"), **changes), "class").spec.shape == (1,)


def test_all_that_is_wrong_with_a_table_is_said_in_one_message(tmp_path: Path) -> None:
    rows = [f"{'' if i == 5 else i},name{i},{['0', '1', '2+'][i % 3]},31.12.{2000 + i},{i % 2}" for i in range(400)]
    table = write(tmp_path / "a.csv", "a,name,size,day,y", *rows)
    with pytest.raises(DataError) as caught:
        load(Table(path=str(table)), "class")
    said = str(caught.value)
    for part in (
        "row 6, column 'a': the cell is empty",
        "column 'name' holds 400 different texts",
        "row 3, column 'size': '2+' among numbers",
        "row 1, column 'day': '31.12.2000' in a column of dates",
        "data.missing=mean",
        "data.categorical=[size, day]",
    ):
        assert part in said, said
    assert said.count("data.missing=mean") == 1 and "\n" not in said
    fine = Table(path=str(table), drop=("name", "day"), categorical=("size",), missing="mean")
    assert load(fine, "class").spec.shape == (4,)


def test_the_types_that_no_table_can_hold_are_said_together(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"column 'd' holds list.*column 'e' holds binary.*data\.drop=\[d, e\]"):
        load(Table(path=str(with_nested(tmp_path / "a.parquet"))), "class")


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "__index_level_0__"])
def test_row_numbers_that_pandas_wrote_are_left_out_and_that_is_said(name: str, tmp_path: Path) -> None:
    table = write(tmp_path / "a.csv", f"{name},x,y", *(f"{i},{i % 7},{'no' if i < 20 else 'yes'}" for i in range(40)))
    data = load(Table(path=str(table)), "class")
    assert data.preprocess.fitted.names == ("x",)  # type: ignore[union-attr]  # a table's
    assert [note for note in data.notes if note.startswith(f"column '{name}' is left out: row numbers as pandas")]
    named = load(Table(path=str(table), columns=(name, "x")), "class")
    assert named.preprocess.fitted.names == (name, "x")  # type: ignore[union-attr]  # a table's


def test_a_column_that_numbers_the_rows_gets_a_warning(tmp_path: Path) -> None:
    rows = [f"{1000 - i},{i / 3},{i % 7},{'no' if i < 20 else 'yes'}" for i in range(40)]
    data = load(Table(path=str(write(tmp_path / "a.csv", "id,x,k,y", *rows))), "class")
    assert data.notes == (
        "column 'id' holds a different whole number in each row, as row numbers do; "
        "if it is an index, leave it out with data.drop=[id]",
    )


def test_what_was_read_is_said_in_one_line(tmp_path: Path) -> None:
    rows = [f"{i % 7},{'abc'[i % 3]},{i / 7},{['no', 'yes'][i % 2]}" for i in range(30)]
    data = load(Table(path=str(write(tmp_path / "a.csv", "k,c,x,bought", *rows, repeat=100))), "class")
    assert data.summary == "2,400/300/300 rows, 3 columns -> 5 inputs, target bought (no, yes)"


# --- for a model ---------------------------------------------------------------------------------------------------

LINES = [f"{i},{['u', 'v', ''][i % 3]},{'no' if i > 30 else 'yes'}" for i in range(60)]


def test_rows_to_predict_need_no_labels(tmp_path: Path) -> None:
    config = Table(path=str(write(tmp_path / "a.csv", "a,c,y", *LINES)), missing="mean")
    model = load(config, "class").preprocess
    for rows in (["1,u,", "2,v,"], ["3,u,maybe"], ["3,,no"], ["3,7,"]):
        new = Table(path=str(write(tmp_path / "b.csv", "a,c,y", *rows)))
        data = open_with(model, new, targets=False)
        assert data.sizes == {"test": len(rows)} and "targets" not in next(data.shard().held_out("test", 9))
    assert prepared(data)[0][1:] == [0, 0]  # a text that is a number, and was never seen
    new = write(tmp_path / "c.csv", "a,c", "3,")
    assert prepared(open_with(model, Table(path=str(new)), targets=False))[0][1:] == [0, 0]
    with pytest.raises(DataError, match="'maybe' is no class of this model"):
        open_with(model, Table(path=str(write(tmp_path / "b.csv", "a,c,y", "3,u,maybe"))))


@pytest.mark.parametrize("cells", [("true", "false", "unknown"), ("1", "2", "x"), ("2020-01-01", "x", "y")])
def test_a_column_of_texts_stays_one_whatever_a_new_file_makes_of_it(cells: tuple[str, ...], tmp_path: Path) -> None:
    rows = [f"{cells[i % 3]},{'ab'[i % 2]}" for i in range(60)]
    config = Table(path=str(write(tmp_path / "a.csv", "c,y", *rows)), categorical=("c",))
    model = load(config, "class").preprocess
    new = write(tmp_path / "b.csv", "c", cells[1], cells[0])
    values = model.fitted.features[0].values  # type: ignore[union-attr]  # a category's
    expected = [[float(value == cell) for value in values] for cell in (cells[1], cells[0])]
    assert prepared(open_with(model, Table(path=str(new)), targets=False)) == expected


def test_an_empty_cell_that_a_model_cannot_take_is_refused_with_what_can_be_done(tmp_path: Path) -> None:
    rows = [f"{i / 7},{'uv'[i % 2]},{'no' if i > 30 else 'yes'}" for i in range(60)]
    model = load(Table(path=str(write(tmp_path / "a.csv", "a,c,y", *rows))), "class").preprocess
    with pytest.raises(
        DataError, match="row 1, column 'c': the cell is empty; mend such cells: the model was"
    ) as caught:
        open_with(model, Table(path=str(write(tmp_path / "b.csv", "a,c", "3,"))), targets=False)
    assert "data.missing" not in str(caught.value)
