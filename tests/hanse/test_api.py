"""The Python API: the verbs as functions, with values instead of lines."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import hanse
from core.errors import ConfigError, DataError
from core.storage.store import runs_root
from hanse import launch

ROOT = Path(__file__).resolve().parents[2]
WINE: dict[str, Any] = {
    "data": {"kind": "table", "path": "bundled:wine"},
    "model": {"kind": "mlp", "hidden": [16]},
    "train": {"steps": 60},
}


def test_a_file_with_overrides_is_trained(capsys: pytest.CaptureFixture[str]) -> None:
    result = hanse.train(ROOT / "configs/train/digits-mlp.yaml", {"train.steps": 30, "train.evaluate_every": 0})
    assert result.run.parent == runs_root() and result.summary["steps"] == 30
    assert (
        result.metrics == result.summary["metrics"] == json.loads((result.run / "summary.json").read_text())["metrics"]
    )
    assert result.metrics["accuracy"] > 0.5
    assert "step 30/30" in capsys.readouterr().out


def test_a_mapping_is_as_good_as_a_file_and_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    result = hanse.train(WINE, {"optimizer.lr": 1e-2}, quiet=True)
    assert result.metrics["accuracy"] > 0.8 and "train" in WINE
    assert capsys.readouterr().out == ""


def test_what_was_trained_is_used_by_path_or_name(tmp_path: Path) -> None:
    result = hanse.train(WINE, {"optimizer.lr": 1e-2}, quiet=True)
    for reference in (result.run, result.run.name, result.run / "model", "latest"):
        assert hanse.evaluate(reference).metrics == pytest.approx(result.metrics)
    rows = tmp_path / "rows.csv"
    rows.write_text(
        "alcohol,malic_acid,ash,alcalinity_of_ash,magnesium,total_phenols,flavanoids,nonflavanoid_phenols,"
        "proanthocyanins,color_intensity,hue,od280/od315_of_diluted_wines,proline\n"
        "14.23,1.71,2.43,15.6,127,2.8,3.06,0.28,2.29,5.64,1.04,3.92,1065\n"
    )
    (answer,) = hanse.predict(result.run, rows)
    assert answer["row"] == 1 and answer["class"] == "class_0" and answer["probability"] > 0.5


def test_text_is_generated_with_options() -> None:
    text = {"kind": "text", "path": "bundled:english", "context": 16, "limit_bytes": 4000}
    config = {"data": text, "model": {"kind": "recurrent", "hidden": 8}, "train": {"steps": 2, "batch_size": 4}}
    result = hanse.train(config, quiet=True)
    once, again = (hanse.generate(result.run, "The ", max_new_tokens=10, seed=3) for _ in range(2))
    assert once == again
    with pytest.raises(ConfigError, match="temprature: unknown key; did you mean 'temperature'"):
        hanse.generate(result.run, "The ", temprature=1.0)


def test_errors_are_raised_and_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"train\.stepz: unknown key"):
        hanse.train(WINE, {"train.stepz": 3})
    with pytest.raises(DataError, match="no such run"):
        hanse.evaluate("nothing")
    assert capsys.readouterr().err == ""


def test_a_run_in_shards_takes_the_threads_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, seen = launch.execute, list[int]()

    def execute(*arguments: Any) -> Any:
        seen.append(torch.get_num_threads())
        return whole(*arguments)

    monkeypatch.setattr(launch, "execute", execute)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for shards in (1, 2):
            hanse.train(WINE, {"train.shards": shards}, quiet=True)
        assert (seen, torch.get_num_threads()) == ([2, 1], 2)
    finally:
        torch.set_num_threads(before)
