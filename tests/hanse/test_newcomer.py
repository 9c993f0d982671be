"""Mistakes of a first day, each answered by one line that helps."""

from pathlib import Path
from typing import Any

import pytest

import hanse
from core.errors import ConfigError, DataError, HanseError
from core.storage.store import RunDirectory

ROWS = "".join(f"{i % 7},{i % 5},{'ab'[i % 2]}\n" for i in range(80))
CONFIG: dict[str, Any] = {"model": {"kind": "mlp", "hidden": [8]}, "train": {"steps": 5}}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "t.csv"
    path.write_text("x,y,label\n" + ROWS)
    return path


def train(table: Path, run: Path, **changes: Any) -> Path:
    config = {**CONFIG, "data": {"kind": "table", "path": str(table)}}
    return hanse.train(config, {"run_dir": str(run), **changes}).run


def test_what_training_fixed_cannot_be_changed_when_predicting(table: Path, tmp_path: Path) -> None:
    run = train(table, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"data\.missing: is fixed by the model's training"):
        hanse.predict(run, table, {"data.missing": "mean"})


def test_a_score_on_other_data_is_not_called_a_test_score(table: Path, tmp_path: Path) -> None:
    run = train(table, tmp_path / "run")
    assert hanse.evaluate(run).split == "test"
    other = hanse.evaluate(run, {"data.path": str(table)})
    assert (other.split, other.examples) == ("all", 80)


@pytest.mark.parametrize(
    "wrong", [{"data.target": "lable"}, {"data.path": "nowhere.csv"}, {"freeze": ["no.such.layer"]}]
)
def test_a_run_that_fails_before_its_first_step_leaves_no_directory(
    wrong: dict[str, Any], table: Path, tmp_path: Path
) -> None:
    with pytest.raises(HanseError):
        train(table, tmp_path / "run", **wrong)
    assert not (tmp_path / "run").exists()
    train(table, tmp_path / "run")


def test_a_run_that_fails_later_keeps_what_it_did(table: Path, tmp_path: Path) -> None:
    train(table, tmp_path / "run")
    changed = table.read_text() + "1,1,a\n"
    table.write_text(changed)
    with pytest.raises(DataError, match="is not what it was when this run began"):
        train(table, tmp_path / "run", **{"resume": True, "train.steps": 9})
    assert hanse.evaluate(tmp_path / "run", {"data.path": str(table)}).examples == 81


def test_a_run_that_failed_says_how_to_be_rid_of_it(table: Path, tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run") as directory:
        directory.finish("failed", "no column lable")
    with pytest.raises(ConfigError, match="already holds a run; remove it with `hanse runs remove"):
        train(table, tmp_path / "run")
    with pytest.raises(DataError, match=r"this run has no model yet: it failed: .*lable"):
        hanse.evaluate(tmp_path / "run")


def test_a_run_with_a_checkpoint_is_offered_to_be_resumed(table: Path, tmp_path: Path) -> None:
    train(table, tmp_path / "run")
    with pytest.raises(ConfigError, match="go on with it by resume=true"):
        RunDirectory.create(tmp_path / "run")


def test_a_freeze_pattern_that_names_a_layer_is_answered_by_its_parameters(table: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'head' matches no parameter; did you mean 'head\.\*'"):
        train(table, tmp_path / "run", freeze=["head"])
