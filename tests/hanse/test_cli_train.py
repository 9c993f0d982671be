"""`hanse train`: where a run goes, what it leaves behind, and how it is gone on with."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from core.storage.store import runs_root
from hanse.cli import main

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs/train").glob("*.yaml"))
FILE = """\
data: {kind: table, path: "bundled:wine"}
model: {kind: mlp, hidden: [16], dropout: 0.1}
train: {steps: 20, batch_size: 32, evaluate_every: 10, checkpoint_every: 5}
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "wine.yaml"
    path.write_text(FILE)
    return str(path)


def train(*words: object) -> int:
    return main(["train", *map(str, words)])


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_leaves_everything_in_its_directory(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(file) == 0
    (run,) = (path for path in runs_root().iterdir() if not path.is_symlink())
    assert run.name.split("-")[2] == "wine"
    for name in ("config.yaml", "model/model.safetensors", "report.html", "checkpoints/last"):
        assert (run / name).is_file(), name
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "done" and record["workers"] == 0 and record["data"]["sizes"]["train"] > 100
    splits = {line["split"] for line in lines(run / "metrics.jsonl")}
    assert splits == {"train", "validation", "test"}
    last = capsys.readouterr().out.splitlines()[-5:]
    text = "\n".join(last)
    assert "result  test accuracy" in text and f"run     {run}" in text and f"next    hanse evaluate {run.name}" in text


def test_no_file_of_a_run_names_a_place_on_this_machine(file: str, tmp_path: Path) -> None:
    assert train(file, f"run_dir={tmp_path / 'run'}", "--quiet") == 0
    for name in ("config.yaml", "summary.json", "metrics.jsonl", "events.jsonl", "model/config.json"):
        assert str(tmp_path) not in (tmp_path / "run" / name).read_text(), name


def test_with_json_every_line_is_an_object_and_the_last_is_the_end(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "here"
    assert train(file, f"run_dir={run}", "--json") == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert said[-1] == {"event": "end", "run": str(run), "summary": summary(run)}
    assert [line["step"] for line in said if line.get("split") == "validation"] == [10, 20]


def test_quiet_says_the_last_lines_only(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(file, "--quiet") == 0
    firsts = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert firsts == ["report", "result", "run", "next", "hanse"]


def test_overrides_win_over_the_file_and_are_kept(file: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(file, f"run_dir={run}", "train.steps=7", "model.hidden=[8, 8]", "name=small") == 0
    assert summary(run)["steps"] == 7
    text = (run / "config.yaml").read_text()
    assert "steps: 7" in text and "hidden: [8, 8]" in text and "name: small" in text


def test_the_config_that_a_run_kept_gives_the_same_weights_again(file: str, tmp_path: Path) -> None:
    assert train(file, f"run_dir={tmp_path / 'a'}", "train.steps=9") == 0
    assert train(tmp_path / "a" / "config.yaml", f"run_dir={tmp_path / 'b'}") == 0
    assert summary(tmp_path / "a")["weights_sha256"] == summary(tmp_path / "b")["weights_sha256"]


def test_dry_run_shows_config_and_costs_and_writes_nothing(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(file, "--dry-run", "train.steps=9") == 0
    out = capsys.readouterr().out
    assert "steps: 9" in out and "parameters  275" in out and "FLOPs/step" in out and "memory" in out
    assert not runs_root().exists()


def test_dry_run_counts_what_a_run_then_has(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(file, "--dry-run", "--json") == 0
    costs = json.loads(capsys.readouterr().out.splitlines()[-1])["summary"]
    assert train(file, f"run_dir={tmp_path / 'run'}", "--quiet") == 0
    assert costs["parameters"] == summary(tmp_path / "run")["parameters"] and costs["flops_per_step"] > 0


# --- going on ------------------------------------------------------------------------------------------------------


def test_a_run_with_more_steps_goes_on_to_the_weights_of_an_undisturbed_one(file: str, tmp_path: Path) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    assert train(file, f"run_dir={once}", "train.steps=30") == 0
    assert train(file, f"run_dir={twice}", "train.steps=13") == 0
    assert train(file, f"run_dir={twice}", "train.steps=30", "resume=true") == 0
    assert summary(once)["weights_sha256"] == summary(twice)["weights_sha256"]
    assert "steps: 30" in (twice / "config.yaml").read_text()


def test_a_finished_run_says_so_and_keeps_its_summary(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(file, f"run_dir={run}") == 0
    before, metrics = summary(run), (run / "metrics.jsonl").read_text()
    capsys.readouterr()
    assert train(file, f"run_dir={run}", "resume=true", "--json") == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert said[-1]["summary"] == before == summary(run)
    assert "finished" in [line["event"] for line in said]
    assert (run / "metrics.jsonl").read_text() == metrics
    assert json.loads((run / "run.json").read_text())["status"] == "done"


def test_a_run_is_resumed_by_its_name(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(file, "train.steps=5") == 0
    name = (runs_root() / "latest").resolve().name
    assert train(file, f"resume={name}", "train.steps=8") == 0
    assert "started  step 5" in capsys.readouterr().out
    assert summary(runs_root() / name)["steps"] == 8
    assert len([path for path in runs_root().iterdir() if not path.is_symlink()]) == 1


def test_resume_into_a_directory_without_a_run_starts_one(file: str, tmp_path: Path) -> None:
    """So that a scheduler can use one command for the first start and for every restart."""
    assert train(file, f"run_dir={tmp_path / 'new'}", "resume=true") == 0
    assert summary(tmp_path / "new")["steps"] == 20


def test_init_starts_from_the_weights_of_another_run(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(file, f"run_dir={tmp_path / 'a'}", "train.steps=60", "optimizer.lr=1e-2", "--quiet") == 0
    capsys.readouterr()
    for reference in (tmp_path / "a", tmp_path / "a" / "model"):
        run = tmp_path / f"b-{reference.name}"
        words = (f"init={reference}", "freeze=[layers.0.*]", "train.steps=1", "--json")
        assert train(file, f"run_dir={run}", *words) == 0
        said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        (told,) = [line for line in said if line["event"] == "initialized"]
        assert "layers.0.weight" in told["loaded"] and told["fresh"] == []
        assert summary(run)["metrics"]["accuracy"] > 0.8  # one step from fresh weights comes to about a third


# --- the files that come with Hanse --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_config_file_is_short_and_says_its_command(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = path.read_text().splitlines()
    assert len(text) <= 25 and text[0].startswith(f"# hanse train configs/train/{path.name} ")
    monkeypatch.chdir(ROOT)
    command = shlex.split(text[0].removeprefix("# ").split("   ")[0])
    assert main(["config", "validate", *command[2:]]) == 0


def test_the_config_files_that_scripts_rely_on_are_there() -> None:
    wanted = {"digits.yaml", "digits-mlp.yaml", "tabular.yaml", "text-lstm.yaml", "gpt.yaml"}
    assert wanted <= {path.name for path in CONFIGS}
