"""Other people's tables, from the file through the training to the answers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hanse
from core.errors import DataError
from hanse.cli import main
from hanse.inference import evaluate_each, load_models

CONFIG: dict[str, Any] = {
    "model": {"kind": "mlp", "hidden": [8]},
    "optimizer": {"kind": "adamw", "lr": 0.02},
    "train": {"steps": 60},
}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def train(table: Path, **changes: Any) -> Path:
    """The run of a small model of the table."""
    config = {**CONFIG, "data": {"kind": "table", "path": str(table)}}
    keys = {key.replace("__", "."): value for key, value in changes.items()}
    return hanse.train(config, {"run_dir": str(table.parent / f"run-{table.stem}"), **keys}).run


def test_a_target_with_a_large_mean_is_answered_as_exactly_as_it_is_scored(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=200)
    table = write(tmp_path / "a.csv", "x,when\n" + "".join(f"{v:.4f},{1.7e9 + 50 * v:.3f}\n" for v in values))
    run = train(table, objective__kind="regression")
    answers = np.array([answer["value"] for answer in hanse.predict(run, table)])
    truth = np.array([float(line.split(",")[1]) for line in table.read_text().splitlines()[1:]])
    assert len(set(answers)) > 190
    said = hanse.evaluate(run, {"data.path": str(table)}).metrics["mae"]
    assert np.abs(answers - truth).mean() == pytest.approx(said, rel=1e-5)


@pytest.mark.parametrize("constant", ["0.1", "3.3"])
def test_a_column_that_was_constant_does_not_decide_alone_later(constant: str, tmp_path: Path) -> None:
    rows = "".join(f"{i},{constant},{'no' if i > 30 else 'yes'}\n" for i in range(60))
    run = train(write(tmp_path / "a.csv", "a,k,y\n" + rows))
    new = write(tmp_path / "new.csv", f"a,k\n3,{float(constant) + 0.1}\n58,{float(constant) + 0.1}\n")
    assert [answer["class"] for answer in hanse.predict(run, new)] == ["yes", "no"]


@pytest.mark.parametrize("labels", [("False", "True"), ("01", "1"), (str(10**15), str(10**15 + 1))])
def test_answers_have_the_texts_of_the_labels_and_the_same_file_can_be_evaluated(
    labels: tuple[str, str], tmp_path: Path
) -> None:
    table = write(tmp_path / "a.csv", "a,y\n" + "".join(f"{i / 7},{labels[i > 30]}\n" for i in range(60)))
    run = train(table)
    assert {answer["class"] for answer in hanse.predict(run, table)} == {*labels}
    assert hanse.evaluate(run, {"data.path": str(table)}).metrics["accuracy"] > 0.9


def test_a_spreadsheet_of_semicolons_and_decimal_commas_trains_and_predicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        f"{v:.2f};{i % 9};{'yes' if v > 0.5 else 'no'}\n" for i, v in enumerate(np.random.default_rng(0).random(60))
    ]
    table = write(tmp_path / "a.csv", "a;b;y\n" + "".join(rows).replace(".", ","))
    file = write(tmp_path / "t.yaml", f"data: {{kind: table, path: {table}}}\nmodel: {{kind: mlp, hidden: [8]}}\n")
    assert (
        main(
            ["train", str(file), "data.target=y", "train.steps=90", "optimizer.lr=0.02", f"run_dir={tmp_path / 'run'}"]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "data: 48/6/6 rows, 2 columns -> 2 inputs, target y (no, yes)\n" in said
    assert "note: read with semicolons between the cells" in said
    assert "note: column 'a' holds texts that are read as numbers" in said
    new = write(tmp_path / "new.csv", "a;b\n0,95;1\n0,05;1\n")
    assert main(["predict", str(tmp_path / "run"), f"data.path={new}", f"out={tmp_path / 'out.jsonl'}"]) == 0
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [answer["class"] for answer in answers] == ["yes", "no"]


def test_weights_that_are_all_zero_and_numbers_past_float32_are_refused_by_name(tmp_path: Path) -> None:
    rows = "".join(f"{i},0,{i % 2}\n" for i in range(60))
    with pytest.raises(DataError, match=r"data.weight: 'w' is 0 in every training row; name another column"):
        train(write(tmp_path / "weights.csv", "a,w,y\n" + rows), data__weight="w")
    with pytest.raises(DataError, match=r"row 61, column 'a': the number 1e\+39 is too large for float32; mend it"):
        train(write(tmp_path / "large.csv", "a,w,y\n" + rows + "1e39,0,1\n"))
    run = train(write(tmp_path / "small.csv", "a,y\n" + "".join(f"{i * 1e-9},{i % 2}\n" for i in range(60))))
    new = write(tmp_path / "new.csv", "a\n1\n1e38\n")
    with pytest.raises(DataError, match=r"row 2, column 'a': 1e\+38 is too far from the training rows for float32"):
        hanse.predict(run, new)


@pytest.mark.parametrize("scale, shift", [(100, 0.0), (0.01, 0.0), (50, 1.7e9)])
def test_true_values_stand_beside_answers_as_the_file_has_them(scale: float, shift: float, tmp_path: Path) -> None:
    truth = [round(shift + scale * v, 3) for v in np.random.default_rng(0).normal(size=200)]
    rows = "".join(f"{i / 7},{value}\n" for i, value in enumerate(truth))
    run = train(write(tmp_path / "a.csv", "x,y\n" + rows), objective__kind="regression", train__steps=2)
    _, answers = evaluate_each(load_models(run))
    assert [answer["target"] for answer in answers] == [truth[answer["row"] - 1] for answer in answers]
