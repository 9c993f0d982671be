"""`hanse predict`: what is asked of pictures and of rows from standard input, and what names the answers."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

import hanse
from hanse.cli import main

PICTURES = "data: {kind: image, path: PATH}\nmodel: {kind: mlp, hidden: [8]}\ntrain: {steps: 30, batch_size: 8}\n"
WINE = 'data: {kind: table, path: "bundled:wine"}\nmodel: {kind: mlp, hidden: [8]}\ntrain: {steps: 30}\n'


def draw(path: Path, shade: int, mode: str = "L", size: int = 6) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(shade).integers(shade, shade + 40, (size, size)).astype(np.uint8)
    Pillow.fromarray(pixels).convert(mode).save(path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that tells dark pictures from bright ones."""
    root = tmp_path_factory.mktemp("pictures")
    for i in range(12):
        draw(root / "data" / "bright" / f"{i:02}.png", 200 - i)
        draw(root / "data" / "dark" / f"{i:02}.png", i)
    return trained(root, PICTURES.replace("PATH", str(root / "data")))


@pytest.fixture(scope="module")
def wine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("wine"), WINE)


def trained(root: Path, config: str) -> Path:
    (root / "it.yaml").write_text(config)
    assert main(["train", str(root / "it.yaml"), f"run_dir={root / 'run'}", "--quiet"]) == 0
    return root / "run"


def answers(run: Path, path: object, tmp_path: Path, *words: str) -> list[dict[str, str]]:
    out = tmp_path / "answers.csv"
    assert main(["predict", str(run), f"data.path={path}", f"out={out}", "--force", "--quiet", *words]) == 0
    with out.open() as file:
        return list(csv.DictReader(file))


# --- pictures ------------------------------------------------------------------------------------------------------


def test_the_answers_of_pictures_carry_the_names_of_their_files(pictures: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    for name, shade in (("b.png", 5), ("a.png", 190), ("sub/c.jpg", 8), ("sub/deeper/d.bmp", 195)):
        draw(new / name, shade, "RGB")
    (new / "notes.txt").write_text("no picture")
    found = answers(pictures, new, tmp_path)
    assert [(row["row"], row["file"], row["class"]) for row in found] == [
        ("1", "a.png", "bright"),
        ("2", "b.png", "dark"),
        ("3", "sub/c.jpg", "dark"),
        ("4", "sub/deeper/d.bmp", "bright"),
    ]


def test_pictures_need_no_folder_of_a_known_class(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "unsorted" / "holiday" / "1.png", 4)
    (row,) = answers(pictures, tmp_path / "unsorted", tmp_path)
    assert (row["file"], row["class"]) == ("holiday/1.png", "dark")
    assert main(["evaluate", str(pictures), f"data.path={tmp_path / 'unsorted'}"]) == 3
    assert "'holiday' is no class of this model" in capsys.readouterr().err


def test_one_picture_is_predicted(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = answers(pictures, draw(tmp_path / "One.PNG", 210), tmp_path)
    assert (row["file"], row["class"]) == ("One.PNG", "bright")
    assert hanse.predict(pictures, tmp_path / "One.PNG")[0]["file"] == "One.PNG"
    capsys.readouterr()
    assert main(["evaluate", str(pictures), f"data.path={tmp_path / 'One.PNG'}"]) == 3
    assert capsys.readouterr().err.count("\n") == 1


def test_all_pictures_of_a_folder_with_splits_are_predicted(pictures: Path, tmp_path: Path) -> None:
    for i, part in enumerate(("Testing", "Training")):
        draw(tmp_path / "both" / part / "dark" / "1.png", i)
    assert [row["file"] for row in answers(pictures, tmp_path / "both", tmp_path)] == [
        "Testing/dark/1.png",
        "Training/dark/1.png",
    ]


def test_a_picture_of_another_size_is_refused_with_what_can_be_done(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "new" / "a.png", 5)
    draw(tmp_path / "new" / "b.png", 5, size=9)
    assert main(["predict", str(pictures), f"data.path={tmp_path / 'new'}"]) == 3
    said = capsys.readouterr().err
    assert "b.png: is 9x9 pixels, the model was trained on 6x6; resize it, or train with data.size=[6,6]" in said


def test_a_name_that_is_not_utf8_comes_back_in_writing(pictures: Path, tmp_path: Path) -> None:
    folder = draw(tmp_path / "new" / "a.png", 5).parent
    (folder / "a.png").rename(folder / b"\xff.png".decode(errors="surrogateescape"))
    assert answers(pictures, folder, tmp_path)[0]["file"] == "\\xff.png"


# --- standard input ------------------------------------------------------------------------------------------------


def given(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_rows_from_standard_input_are_answered_as_those_of_a_file(
    wine: Path, wines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = answers(wine, wines, tmp_path)
    with wines.open() as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    records = [{name: value if name == "target" else float(value) for name, value in row.items()} for row in rows]
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    for content in (wines.read_bytes(), b"\n" + lines, json.dumps(records).encode(), gzip.compress(wines.read_bytes())):
        given(monkeypatch, content)
        assert answers(wine, "-", tmp_path) == expected
    given(monkeypatch, lines)
    capsys.readouterr()
    assert main(["evaluate", str(wine), "data.path=-", "--json"]) == 0
    end = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert end["summary"]["examples"] == 178 and end["summary"]["source"] == "standard input"


def test_what_is_wrong_with_standard_input_is_said_of_it(
    wine: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for run, content, code, said in [
        (wine, b"", 3, "data.path: nothing came from standard input"),
        (wine, b"a,a\n1,2\n", 3, "standard input: the column name 'a' appears twice"),
        (pictures, b"", 2, "data.path: - means rows of a table from standard input; this model takes image data"),
    ]:
        given(monkeypatch, content)
        assert main(["predict", str(run), "data.path=-"]) == code
        assert capsys.readouterr().err.startswith(f"hanse: {said}")


# --- what names a row ----------------------------------------------------------------------------------------------


def people(path: Path, ids: str = "who") -> Path:
    rows = [f"{i:03d},{i % 7},{'yes' if i % 7 > 3 else 'no'}" for i in range(60)]
    path.write_text("\n".join([f"{ids},a,y", *rows]) + "\n")
    return path


def test_the_answers_of_a_table_carry_its_id_as_it_stands_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = f"data: {{kind: table, path: {people(tmp_path / 'a.csv')}, id: who}}\nmodel: {{kind: mlp, hidden: [4]}}\n"
    run = trained(tmp_path, f"{config}train: {{steps: 5}}\n")
    assert "1 column -> 1 input, target y" in (run / "events.jsonl").read_text()  # a name is no input
    found = answers(run, tmp_path / "a.csv", tmp_path)
    assert [(row["row"], row["who"]) for row in found[:2]] == [("1", "000"), ("2", "001")]
    capsys.readouterr()
    other = people(tmp_path / "b.csv", ids="class")
    assert main(["predict", str(run), f"data.path={other}"]) == 3
    assert "data.id: there is no column 'who'" in capsys.readouterr().err
    assert answers(run, other, tmp_path, "data.id=class")[59]["id"] == "059"  # `class` is the answer's
    assert "who" not in answers(run, other, tmp_path, "data.id=null")[0]


def test_the_held_out_rows_of_a_repeat_carry_their_id(tmp_path: Path) -> None:
    config = f"data: {{kind: table, path: {people(tmp_path / 'a.csv')}, id: who}}\nmodel: {{kind: mlp, hidden: [4]}}\n"
    run = trained(tmp_path, f"{config}train: {{steps: 3}}\nrepeat: {{folds: 2}}\n")
    with (run / "predictions.csv").open() as file:
        assert [row["who"] for row in csv.DictReader(file)] == [f"{i:03d}" for i in range(60)]


def test_an_id_that_is_an_input_or_the_target_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "it.yaml").write_text(WINE)
    for words in (["data.target=who"], ["data.columns=[who]"]):
        assert main(["train", str(tmp_path / "it.yaml"), "data.id=who", *words]) == 2
        assert "data.id: must name a column that is neither target nor input" in capsys.readouterr().err
