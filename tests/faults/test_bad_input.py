"""What a user gets wrong is one line that says what, where and how to mend it, with its exit code; nothing is lost."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from core.storage.checkpoint import load_latest
from core.storage.store import RunDirectory
from hanse.cli import main

ROOT = Path(__file__).resolve().parents[2]
CSV = "a,b,kind\n" + "".join(f"{i % 7},{i % 5},{'xy'[i % 2]}\n" for i in range(60))
FILE = """\
data: {kind: table, path: "DATA"}
model: {kind: mlp, hidden: [8]}
train: {steps: 6, batch_size: 16}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A good config over a good csv."""
    (tmp_path / "data.csv").write_text(CSV)
    path = tmp_path / "good.yaml"
    path.write_text(FILE.replace("DATA", str(tmp_path / "data.csv")))
    return path


def refused(words: list[str], exit_code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command ends with this exit code and one line that says so."""
    assert main(words) == exit_code
    errors = capsys.readouterr().err
    assert errors.startswith("hanse: ") and errors.count("\n") == 1, errors
    assert said in errors, errors


def test_the_good_config_is_good(file: Path, tmp_path: Path) -> None:
    assert main(["train", str(file), f"run_dir={tmp_path / 'run'}", "--quiet"]) == 0


# --- configs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word, said",
    [
        ("optimzer.lr=1", "optimzer: unknown key; did you mean 'optimizer'?"),
        ("optimizer.lrr=1", "optimizer.lrr: unknown key; did you mean 'lr'?"),
        ("model.kind=mpl", "model.kind: unknown kind 'mpl'; did you mean 'mlp'?"),
        ("train.steps=many", "train.steps: should be a valid integer, got 'many'"),
        ("train.steps=2.5", "train.steps: should be a valid integer, got 2.5"),
        ("train.steps=0", "train.steps: must be at least 1, got 0"),
        ("train.shards=3", "train.shards: must be a power of two, got 3"),
        ("train.shards=128", "train.shards: times accumulate must not exceed batch_size (16), got 128"),
        ("model.dropout=1.5", "model.dropout: must be in [0, 1), got 1.5"),
        ("optimizer.lr=-1", "optimizer.lr: must be above 0"),
        ("train.precision=fp8", "train.precision: should be 'fp32', 'bf16' or 'fp16', got 'fp8'"),
        ("train.steps", "'train.steps' is not an override; write key=value"),
        ("data.kind=text", "model.kind"),
        ("train.metric=accurracy", "train.metric"),
        ("resume=true", "resume"),
        ("device=cuda", "device: cuda is not available"),
        ("address=127.0.0.1:1", "address: workers is 0"),
        ("freeze=[nothing.*]", "freeze: 'nothing.*' matches no parameter"),
    ],
)
def test_a_wrong_override_is_named(word: str, said: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exit_code = 4 if word == "device=cuda" else 2
    refused(["train", str(file), word], exit_code, said, capsys)


@pytest.mark.parametrize(
    "text, said",
    [
        ("train: {steps: 3}\ntrain: {steps: 4}\n", ":2: key 'train' appears twice (first in line 1)"),
        ("train: {steps: 3\n", "not valid YAML"),
        ("- a list\n", "a config is a mapping of keys"),
        ("model: {kind: mlp}\n", "data: required key is missing"),
    ],
)
def test_a_wrong_file_is_named_with_the_line(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    refused(["train", str(tmp_path / "bad.yaml")], 2, said, capsys)


def test_a_config_that_is_not_there_is_named_with_the_nearest(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(["train", str(file.with_name("goood.yaml"))], 2, f"did you mean {file}?", capsys)


# --- data ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, words, said",
    [
        (None, [], "no such file or folder"),
        ("", [], "the file is empty"),
        ("a,b,kind\n1,2,x\n1,2\n", [], "line 3 has 2 cells, the first line has 3"),
        (CSV, ["data.target=knd"], "knd"),
        (CSV.replace("3,3,y", "nan,3,y"), [], "column 'a': the cell is empty or NaN"),
        (CSV.replace("3,3,y", "oops,3,y"), [], "column 'a': 'oops' among numbers"),
    ],
    ids=["absent", "empty", "ragged", "no such column", "NaN", "text among numbers"],
)
def test_wrong_data_is_named(
    text: str | None, words: list[str], said: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = file.with_name("data.csv")
    if text is None:
        data.unlink()
    else:
        data.write_text(text)
    refused(["train", str(file), *words], 3, said, capsys)


def test_a_run_that_could_not_begin_leaves_no_directory(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.with_name("data.csv").write_text("")
    run = tmp_path / "run"
    refused(["train", str(file), f"run_dir={run}"], 3, "the file is empty", capsys)
    assert not run.exists()


@pytest.mark.parametrize("verb", ["evaluate", "predict", "generate"])
def test_a_model_that_is_not_there_is_named(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = {"predict": ["data.path=x.csv"], "generate": ["prompt=x"]}.get(verb, [])
    refused([verb, "nothing", *words], 3, "nothing: no such run", capsys)
    refused([verb, str(tmp_path), *words], 3, "neither a run nor a model directory", capsys)


def test_a_truncated_model_is_named(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["train", str(file), f"run_dir={run}", "--quiet"]) == 0
    capsys.readouterr()
    weights = run / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    refused(["evaluate", str(run)], 3, "model.safetensors: damaged", capsys)


# --- run directories -----------------------------------------------------------------------------------------------


def test_a_run_directory_is_not_written_over(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", str(file), f"run_dir={tmp_path / 'run'}"]
    assert main([*words, "--quiet"]) == 0
    capsys.readouterr()
    refused(words, 2, "already holds a run; go on with it by resume=true", capsys)
    refused(["train", str(file), f"run_dir={tmp_path}"], 2, "is not empty", capsys)


def test_two_processes_cannot_work_on_one_run_directory(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["train", str(file), f"run_dir={run}", "resume=true"]
    assert main([*words, "--quiet"]) == 0
    before = (run / "summary.json").read_bytes()
    capsys.readouterr()
    with RunDirectory.open(run):  # a lock holds against this process too
        refused([*words, "train.steps=9"], 4, "is in use by pid", capsys)
    assert (run / "summary.json").read_bytes() == before


def test_a_run_is_resumed_with_its_own_recipe_only(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["train", str(file), f"run_dir={run}", "resume=true"]
    assert main([*words, "--quiet"]) == 0
    capsys.readouterr()
    assert main([*words, "train.log_every=3", "train.checkpoint_every=2"]) == 0  # moves no weight
    refused([*words, "optimizer.lr=0.5"], 2, "optimizer.lr: is 0.5, and was 0.001 when this run began", capsys)
    refused([*words, "model.kind=cnn"], 2, "model.kind: is 'cnn', and was 'mlp'", capsys)
    assert json.loads((run / "run.json").read_text())["status"] == "done"
    refused(["train", str(file), "resume=nothing"], 3, "nothing: no such run", capsys)


def test_init_from_what_is_no_model_is_refused(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(["train", str(file), "init=nothing"], 3, "nothing: no such run", capsys)
    with RunDirectory.create(tmp_path / "begun"):
        pass
    refused(["train", str(file), f"init={tmp_path / 'begun'}"], 3, "has no model yet: it is killed; finish it", capsys)


# --- while it runs -------------------------------------------------------------------------------------------------


def test_a_loss_that_becomes_nan_names_the_layer_and_keeps_the_last_good_checkpoint(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["optimizer={kind: sgd, lr: 1e9}", "train.steps=50", "train.checkpoint_every=1", "model.hidden=[8, 8]"]
    assert main(["train", str(file), f"run_dir={run}", *words]) == 5
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and "not finite at step" in errors and "first in" in errors
    assert "layers." in errors and "lower optimizer.lr" in errors
    snapshot = load_latest(run / "checkpoints").snapshot
    assert snapshot is not None and snapshot.step >= 1
    assert all(bool(tensor.isfinite().all()) for tensor in snapshot.tensors["model"].values())
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "failed" and "not finite at step" in record["error"]


@pytest.mark.parametrize(
    "words, said",
    [
        (["workers=5000"], "workers: they ask for 5000 CPUs and this machine has"),
        (["workers=1", "address=127.0.0.1:1"], "address: no Ray answers at 127.0.0.1:1"),
        (["workers=1", "address=nonsense"], "address: 'nonsense' is not HOST:PORT"),
    ],
)
def test_what_the_machine_or_the_cluster_lacks_is_named(
    words: list[str], said: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(["train", str(file), *words], 4, said, capsys)


def test_a_full_disk_ends_the_run_with_one_line_and_keeps_the_last_good_checkpoint(file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["train", str(file), f"run_dir={run}", "train.checkpoint_every=1", "model.hidden=[8]"]
    assert main([*words, "--quiet"]) == 0
    before = load_latest(run / "checkpoints").snapshot

    def fill() -> None:  # no file may grow past what the metrics have reached: as a full disk says no
        size = (run / "metrics.jsonl").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    done = subprocess.run(
        [sys.executable, "-m", "hanse", *words, "resume=true", "train.steps=400"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, preexec_fn=fill,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert done.stderr.startswith("hanse: ") and done.stderr.count("\n") == 1
    after = load_latest(run / "checkpoints").snapshot
    assert before is not None and after is not None and after.step >= before.step
