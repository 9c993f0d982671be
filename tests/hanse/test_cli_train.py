"""`hanse train`: where a run goes, what it leaves behind, and how it is gone on with."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from core.data.sources.bundled import read_table
from core.storage.store import runs_root
from hanse.cli import main
from tests.hanse.left import lines, summary

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


def test_dry_run_counts_the_share_of_one_worker(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    def costs(*words: str) -> dict[str, Any]:
        size = () if any(word.startswith("train.batch_size") for word in words) else ("train.batch_size=64",)
        assert train(file, "--dry-run", "--json", *size, *words) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])["summary"]
        return found

    alone, four = costs(), costs("workers=4")
    assert four["memory_bytes"] == costs("train.batch_size=16")["memory_bytes"] < alone["memory_bytes"]
    weights = 4 * 4 * 275  # with gradients and two moments: no worker has fewer, unless they are sharded
    assert four["memory_bytes"] > weights
    assert alone["flops_per_step"] == four["flops_per_step"]
    assert costs("workers={min: 1, max: 4}")["memory_bytes"] == four["memory_bytes"]
    sharded = costs("workers=4", "strategy=fsdp")["memory_bytes"]
    assert sharded == four["memory_bytes"] - weights + weights // 4
    everything = costs("train.batch_size=100000")["memory_bytes"]  # of which there are no more than rows
    assert everything == costs("train.batch_size=142")["memory_bytes"]
    assert costs("freeze=[layers.0.*]")["trainable"] == 16 * 3 + 3
    assert train(file, "--dry-run", "workers={min: 1, max: 4}") == 0
    assert "on each of 4 workers" in capsys.readouterr().out


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


def test_a_run_that_was_stopped_early_goes_on_with_more_patience(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train.steps=60", "train.evaluate_every=5", "optimizer={kind: sgd, lr: 1e-12}"]  # nothing ever gets better
    run, once = tmp_path / "run", tmp_path / "once"
    assert train(file, f"run_dir={run}", *words, "train.patience=2") == 0
    assert summary(run)["ended"] == "early" and summary(run)["steps"] < 60
    before = (run / "summary.json").read_bytes()
    capsys.readouterr()
    assert train(file, f"run_dir={run}", *words, "train.patience=2", "resume=true") == 0
    assert "raise train.patience to go on" in capsys.readouterr().out
    assert train(file, f"run_dir={run}", "train.steps=90", *words[1:], "train.patience=2", "resume=true") == 0
    assert "raise train.patience to go on" in capsys.readouterr().out
    assert (run / "summary.json").read_bytes() == before
    assert train(file, f"run_dir={run}", *words, "train.patience=4", "resume=true") == 0
    assert train(file, f"run_dir={once}", *words, "train.patience=4") == 0
    assert (
        summary(run)["ended"] == "early"
        and summary(run)["steps"] == summary(once)["steps"] > json.loads(before)["steps"]
    )
    assert summary(run)["weights_sha256"] == summary(once)["weights_sha256"]
    assert train(file, f"run_dir={run}", *words, "train.patience=null", "resume=true") == 0
    assert summary(run)["ended"] == "done" and summary(run)["steps"] == 60
    capsys.readouterr()
    assert train(file, f"run_dir={run}", *words, "train.patience=2", "resume=true") == 0
    assert "finished" in capsys.readouterr().out


def test_a_config_file_may_be_renamed_before_its_run_goes_on(file: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(file, f"run_dir={run}", "train.steps=5") == 0
    renamed = Path(file).rename(tmp_path / "reds.yaml")
    assert train(renamed, f"run_dir={run}", "train.steps=8", "resume=true") == 0
    assert summary(run)["steps"] == 8


def test_a_run_goes_on_from_its_own_weights_only(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, run = tmp_path / "a", tmp_path / "b", tmp_path / "run"
    for path in (a, b):
        assert train(file, f"run_dir={path}", "train.steps=2", "--quiet") == 0
    assert train(file, f"run_dir={run}", f"init={a}", "train.steps=3", "--quiet") == 0
    kept, words = (run / "config.yaml").read_text(), (f"run_dir={run}", "train.steps=6", "resume=true", "--quiet")
    capsys.readouterr()
    assert train(file, f"init={b}", *words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "init: " in said and "its own checkpoints" in said
    assert train(file, f"init={a}", f"run_dir={b}", "train.steps=6", "resume=true") == 2  # which began from none
    assert (run / "config.yaml").read_text() == kept
    assert train(file, f"init={a}", *words) == 0  # a command line may be typed again
    assert train(file, *words[:1], "train.steps=7", *words[2:]) == 0
    assert f"init: {a}" in (run / "config.yaml").read_text() and summary(run)["steps"] == 7


def test_a_tilde_in_a_path_is_the_home_directory(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HANSE_RUNS", "~/runs")
    monkeypatch.chdir(here)
    assert train(file, "train.steps=2", "name=first") == 0
    assert (home / "runs" / "latest" / "summary.json").is_file()
    assert train(file, "train.steps=2", "run_dir=~/b", "init=~/runs/latest") == 0
    assert train(file, "train.steps=3", "resume=~/b") == 0
    assert summary(home / "b")["steps"] == 3
    table = read_table("wine")
    rows = [",".join(table.columns), *[",".join(map(str, row)) for row in table.inputs]]
    (home / "rows.csv").write_text("\n".join(rows) + "\n")
    assert main(["predict", "~/b", "data.path=~/rows.csv", "out=~/answers.csv"]) == 0
    assert (home / "answers.csv").is_file() and not list(here.iterdir())
    capsys.readouterr()
    for words in (["predict", "~/b", "data.path=~nobody/x.csv"], ["train", file, "run_dir=~nobody/x"]):
        assert main(words) == 2
        assert f"{words[-1].replace('=', ': ', 1).split(': ')[0]}: '~nobody/x" in capsys.readouterr().err
    assert not list(here.iterdir()), "no directory of that name is made"
    (here / "~rows.csv").write_bytes((home / "rows.csv").read_bytes())
    assert main(["predict", "~/b", "data.path=~rows.csv"]) == 0


def test_the_device_of_a_run_on_workers_is_theirs_to_have(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster import data_parallel

    monkeypatch.setattr(data_parallel, "train", lambda *_: {"ended": "stopped", "steps": 0})
    assert train(file, f"run_dir={tmp_path / 'run'}", "workers=1", "address=head:6379", "device=cuda") == 130


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


def test_a_run_with_epochs_resumes_with_more_of_them_and_never_with_fewer(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, once = tmp_path / "run", tmp_path / "once"
    assert train(file, f"run_dir={run}", "train.epochs=2") == 0
    made, saved = summary(run)["steps"], (run / "config.yaml").read_bytes()
    capsys.readouterr()
    for fewer in ("train.epochs=1", f"train.steps={made - 1}"):
        assert train(file, f"run_dir={run}", fewer, "resume=true") == 2
        said = capsys.readouterr().err
        assert f"{fewer.partition('=')[0]}: ends after" in said and f"this run has made {made}" in said
        assert (run / "config.yaml").read_bytes() == saved and summary(run)["steps"] == made
        assert json.loads((run / "run.json").read_text())["status"] == "done"
    assert train(file, f"run_dir={run}", "train.epochs=2", "resume=true") == 0
    assert "this run has come to its end before" in capsys.readouterr().out
    assert train(file, f"run_dir={run}", "train.epochs=4", "resume=true") == 0
    assert train(file, f"run_dir={once}", "train.epochs=4") == 0
    assert summary(run)["steps"] == 2 * made and summary(run)["weights_sha256"] == summary(once)["weights_sha256"]


def test_a_run_whose_last_evaluation_is_its_best_says_that_it_was_still_improving(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(file, "train.steps=20", "train.evaluate_every=10") == 0
    assert "the model was still improving; train longer, with train.epochs=N" in capsys.readouterr().out
    assert train(file, "train.steps=20", "train.evaluate_every=10", "repeat.seeds=2") == 0
    assert "2 of 2 members were still improving at their last evaluation" in capsys.readouterr().out
    assert train(file, "train.steps=20", "train.evaluate_every=10", "optimizer={kind: sgd, lr: 1e-12}") == 0
    assert "still improving" not in capsys.readouterr().out
