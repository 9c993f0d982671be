"""Other people's tables, from the file through the training to the answers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hanse

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
