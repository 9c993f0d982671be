"""`hanse runs` and `hanse config`: what has been trained, and what can be."""

import json
from pathlib import Path
from typing import Any

import pytest

from core.config import parse_run, read
from core.errors import DataError
from core.recipe import TrainRun
from core.storage.store import RunDirectory, runs_root
from hanse.cli import main
from hanse.find import find_model

ROOT = Path(__file__).resolve().parents[2]
DIGITS = str(ROOT / "configs/train/digits.yaml")


def make_run(name: str, lr: float, accuracy: float | None) -> str:
    """A run as training leaves it, without the training."""
    with RunDirectory.create(runs_root(), name, seed=0, workers=0) as directory:
        directory.config(f"name: {name}\noptimizer: {{kind: adamw, lr: {lr}}}\n")
        directory.metric(step=7, split="train", loss=1.5)
        if accuracy is not None:
            directory.summary({"ended": "done", "steps": 20, "split": "test", "metrics": {"accuracy": accuracy}})
        directory.finish("done" if accuracy is not None else "failed", None if accuracy else "loss is NaN")
    return directory.path.name


def rows(capsys: pytest.CaptureFixture[str], event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1]["event"] == "end"
    return [line for line in lines if line["event"] == event]


def test_without_runs_the_list_says_how_to_begin(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "list"]) == 0
    assert "next    hanse train configs/train/digits.yaml" in capsys.readouterr().out


def test_the_list_shows_status_metric_steps_and_size(capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = make_run("good", 0.1, 0.875), make_run("bad", 0.2, None)
    running = RunDirectory.create(runs_root(), "now")
    assert main(["runs", "list", "--json"]) == 0
    found = {row["run"]: row for row in rows(capsys, "run")}
    assert found[good]["status"] == "done" and found[good]["metric"] == "test accuracy 0.8750"
    assert found[good]["progress"] == "20 steps" and found[bad]["progress"] == "7 steps"
    assert found[bad]["status"] == "failed"
    assert found[running.path.name]["status"] == "running"
    assert all(row["size"].endswith("B") and row["age"] != "-" for row in found.values())
    running.close()


def test_a_damaged_run_does_not_hide_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = make_run("good", 0.1, 0.5), make_run("bad", 0.1, 0.5)
    (runs_root() / bad / "run.json").write_text('{"status": "do')
    (runs_root() / good / "summary.json").write_text("{")
    assert main(["runs", "list", "--json"]) == 0
    found = {row["run"]: row["status"] for row in rows(capsys, "run")}
    assert found == {good: "done", bad: "unreadable"}


def test_show_tells_how_a_run_failed(capsys: pytest.CaptureFixture[str]) -> None:
    name = make_run("bad", 0.1, None)
    assert main(["runs", "show", name[-4:]]) == 0
    out = capsys.readouterr().out
    assert f"run  {name}" in out and "failed" in out and "loss is NaN" in out


def test_compare_shows_what_differs_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    one, two = make_run("x", 0.1, 0.5), make_run("x", 0.2, 0.75)
    assert main(["runs", "compare", one, two, "--json"]) == 0
    found = {row["what"]: (row[one], row[two]) for row in rows(capsys, "difference")}
    assert found == {"optimizer.lr": ("0.1", "0.2"), "accuracy": ("0.5000", "0.7500")}
    assert main(["runs", "compare", one]) == 2


def test_latest_means_for_a_model_the_newest_run_that_has_one() -> None:
    one, two = make_run("x", 0.1, 0.5), make_run("bad", 0.1, None)
    RunDirectory.join(runs_root() / one).update(start="2000-01-01T10:00:00+00:00")
    (runs_root() / one / "model").mkdir(exist_ok=True)
    (runs_root() / one / "model" / "config.json").write_text("{}")
    assert find_model("latest") == runs_root() / one / "model"
    (runs_root() / one / "model" / "config.json").unlink()
    with pytest.raises(DataError, match=rf"latest \({two}\): this run has no model yet: it failed"):
        find_model("latest")


def test_remove_takes_whole_names_only(capsys: pytest.CaptureFixture[str]) -> None:
    one, two = make_run("x", 0.1, 0.5), make_run("x", 0.2, 0.75)
    for reference in ("latest", one[-4:], one[:9]):
        assert main(["runs", "remove", two, reference]) == 3, reference
    assert (runs_root() / one).is_dir() and (runs_root() / two).is_dir()
    assert main(["runs", "remove", two]) == 0
    assert (runs_root() / one).is_dir() and not (runs_root() / two).exists()
    assert (runs_root() / "latest").resolve().name == one
    assert main(["runs", "remove", str(runs_root() / one)]) == 0
    assert "freed" in capsys.readouterr().out


def test_a_run_at_work_is_not_removed(capsys: pytest.CaptureFixture[str]) -> None:
    with RunDirectory.create(runs_root(), "now") as directory:
        assert main(["runs", "remove", directory.path.name]) == 4
    assert "is in use by pid" in capsys.readouterr().err and directory.path.is_dir()


# --- configs -------------------------------------------------------------------------------------------------------


def test_a_shown_config_is_a_config_of_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", DIGITS, "train.steps=50"]) == 0
    shown = tmp_path / "shown.yaml"
    shown.write_text(capsys.readouterr().out)
    run = parse_run(TrainRun, read(shown))
    assert run.recipe.train.steps == 50 and run.recipe.name == "digits"
    assert main(["config", "show", str(shown)]) == 0
    assert capsys.readouterr().out == shown.read_text()


def test_validate_looks_at_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("model: {kind: mlp}\ndata: {kind: table}\ntrain: {stepz: 3}\n")
    assert main(["config", "validate", str(wrong), DIGITS]) == 2
    out = capsys.readouterr().out
    assert f"{wrong}: train.stepz: unknown key; did you mean 'steps'?" in out and "valid 1  wrong 1" in out
    assert main(["config", "validate", DIGITS]) == 0


def test_the_schema_knows_every_key_of_the_configs_that_come_with_hanse(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    for path in sorted((ROOT / "configs/train").glob("*.yaml")):
        assert set(read(path)) <= set(schema["properties"]), path
    assert schema["additionalProperties"] is False
    assert main(["config", "schema", "trian"]) == 2
