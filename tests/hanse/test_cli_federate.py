"""`hanse federate simulate`: what a federation leaves behind, how it is gone on with, and what is refused."""

import json
import os
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import hanse
from core.errors import ConfigError
from core.storage.store import RunDirectory, runs_root
from hanse.cli import main
from hanse.deployed import absolute
from hanse.federate import parse_federate
from tests.hanse.left import lines, summary

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(path for path in (ROOT / "configs/federate").glob("*.yaml") if "trees" not in path.stem)
FILE = """\
data: {kind: table, path: "bundled:wine"}
model: {kind: mlp, hidden: [8], dropout: 0.1}
optimizer: {kind: sgd, lr: 0.05, momentum: 0.0}
train: {batch_size: 16}
clients: 6
cohort: 3
rounds: 3
evaluate: {every: 2}
"""
SCAFFOLD = ["strategy.kind=scaffold", "transforms=[{kind: int8}]"]  # clients keep vectors of both
IMAGES = ["data={kind: image}"]
BATCH_NORM = [*IMAGES, "model={kind: resnet, norm: batch, width: 4, stages: 4}"]  # its last images have one pixel
ASYNCHRONOUS = ["strategy={kind: fedbuff, buffer: 2, concurrency: 3}", "cohort=null", "devices={}"]


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "wine.yaml"
    path.write_text(FILE)
    return str(path)


def simulate(*words: object) -> int:
    return main(["federate", "simulate", *map(str, words)])


def test_a_federation_leaves_everything_in_its_directory(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(file) == 0
    (run,) = (path for path in runs_root().iterdir() if not path.is_symlink())
    assert run.name.split("-")[2] == "wine"
    for name in ("config.yaml", "model/model.safetensors", "report.html", "checkpoints/last"):
        assert (run / name).is_file(), name
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "done" and record["verb"] == "federate" and record["data"]["sizes"]["train"] > 100
    metrics = lines(run / "metrics.jsonl")
    assert [line["round"] for line in metrics if line["split"] == "train"] == [1, 2, 3]
    assert [line["round"] for line in metrics if line["split"] == "clients"] == [2, 3]
    assert {line["split"] for line in metrics} == {"train", "cohort", "clients", "validation", "test"}
    assert all(len(line["cohort"]["client"]) == 3 for line in metrics if line["split"] == "cohort")
    found = summary(run)
    assert found["rounds"] == 3 and found["clients"] == 6 and found["split"] == "test"
    text = "\n".join(capsys.readouterr().out.splitlines()[-6:])
    assert f"result  test accuracy {found['metrics']['accuracy']:.4f}" in text and "clients worst accuracy" in text
    assert f"run     {run}" in text and f"next    hanse evaluate {run.name}" in text


def test_the_banner_shows_every_number_that_is_not_plain(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    momentum, decay = "optimizer.momentum=0.9", "optimizer.weight_decay=0.001"
    words = [momentum, decay, "partition={kind: dirichlet, alpha: 0.3, balanced: true}", "strategy.server_lr=0.5"]
    assert simulate(file, *words, "rounds=1") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "sgd lr 0.05 momentum 0.9 weight_decay 0.001" in said
    assert "dirichlet alpha 0.3 balanced" in said and "fedavg server_lr 0.5" in said


def test_no_file_of_a_federation_names_a_place_on_this_machine(file: str, tmp_path: Path) -> None:
    assert simulate(file, f"run_dir={tmp_path / 'run'}", *SCAFFOLD, "--quiet") == 0
    for name in ("config.yaml", "summary.json", "metrics.jsonl", "events.jsonl", "model/config.json"):
        assert str(tmp_path) not in (tmp_path / "run" / name).read_text(), name


def test_with_json_every_line_is_an_object_and_the_last_is_the_end(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "here"
    assert simulate(file, f"run_dir={run}", "--json") == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert said[-1] == {"event": "end", "run": str(run), "summary": summary(run)}
    assert [line["round"] for line in said if line.get("split") == "train"] == [1, 2, 3]


def test_quiet_says_the_last_lines_only(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(file, "--quiet") == 0
    firsts = [line.split()[0] for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert firsts == ["report", "result", "run", "next"]


def test_the_model_of_a_federation_is_one_that_evaluate_takes(file: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert simulate(file, f"run_dir={run}", "--quiet") == 0
    assert hanse.evaluate(run).metrics == pytest.approx(summary(run)["metrics"])


def test_without_anything_held_out_there_is_a_model_and_no_score(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ("data.split={validation: 0.0, test: 0.0}", "evaluate.held_out=0", f"run_dir={run}")
    assert simulate(file, *words) == 0
    assert summary(run)["split"] is None and summary(run)["evaluation"] == {}
    assert main(["runs", "show", str(run)]) == 0
    assert "status done" in capsys.readouterr().out


def test_the_config_that_a_run_kept_gives_the_same_weights_again(file: str, tmp_path: Path) -> None:
    assert simulate(file, f"run_dir={tmp_path / 'a'}", "partition.kind=dirichlet", *SCAFFOLD) == 0
    assert simulate(tmp_path / "a" / "config.yaml", f"run_dir={tmp_path / 'b'}") == 0
    assert summary(tmp_path / "a")["weights_sha256"] == summary(tmp_path / "b")["weights_sha256"]


@pytest.mark.slow
@pytest.mark.ray
def test_two_ray_workers_give_the_weights_of_this_process(file: str, tmp_path: Path) -> None:
    words = ["cohort=6", "backend=loop", *SCAFFOLD]  # two chunks, so that both workers have something to do
    assert simulate(file, f"run_dir={tmp_path / 'a'}", *words) == 0
    assert simulate(file, f"run_dir={tmp_path / 'b'}", *words, "engine=pool") == 0
    assert summary(tmp_path / "a")["weights_sha256"] == summary(tmp_path / "b")["weights_sha256"]


# --- going on ------------------------------------------------------------------------------------------------------


@pytest.fixture
def ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real signal while the second round is recorded, once."""
    record, sent = RunDirectory.record, list[bool]()

    def recorded(self: RunDirectory, line: dict[str, Any]) -> None:
        record(self, line)
        if line.get("round") == 2 and not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RunDirectory, "record", recorded)


@pytest.mark.parametrize("words", [[], SCAFFOLD, ASYNCHRONOUS], ids=["fedavg", "scaffold", "fedbuff"])
@pytest.mark.usefixtures("ctrl_c")
def test_a_federation_stopped_by_ctrl_c_goes_on_to_the_weights_of_an_undisturbed_one(
    words: list[str], file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped, once = tmp_path / "stopped", tmp_path / "once"
    words = [*words, "rounds=100", "evaluate.every=0"]
    assert simulate(file, f"run_dir={stopped}", *words) == 130
    said = capsys.readouterr().out
    assert "finishing this round" in said and "stopped after round" in said
    (again,) = (line for line in said.splitlines() if line.startswith("next"))
    assert not (stopped / "summary.json").exists() and lines(stopped / "metrics.jsonl")[-1]["round"] < 100
    assert json.loads((stopped / "run.json").read_text())["status"] == "stopped"
    assert main(["evaluate", str(stopped)]) == 3
    assert "finish it with `hanse federate simulate FILE resume=stopped`" in capsys.readouterr().err
    assert main(shlex.split(again.removeprefix("next"))[1:]) == 0
    assert simulate(file, f"run_dir={once}", *words) == 0
    assert summary(stopped)["weights_sha256"] == summary(once)["weights_sha256"]
    assert summary(stopped)["evaluation"] == summary(once)["evaluation"]
    rounds = [line["round"] for line in lines(stopped / "metrics.jsonl") if line["split"] == "train"]
    assert rounds == list(range(1, 101))


def test_a_finished_federation_says_so_and_keeps_its_summary(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert simulate(file, f"run_dir={run}") == 0
    before, metrics = summary(run), (run / "metrics.jsonl").read_text()
    capsys.readouterr()
    assert simulate(file, f"run_dir={run}", "resume=true", "--json") == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert said[-1]["summary"] == before == summary(run) and "finished" in [line["event"] for line in said]
    assert (run / "metrics.jsonl").read_text() == metrics


def test_rounds_may_grow_and_the_weights_are_those_of_an_undisturbed_run(file: str, tmp_path: Path) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    assert simulate(file, f"run_dir={once}", "rounds=5", *SCAFFOLD) == 0
    assert simulate(file, f"run_dir={twice}", "rounds=3", *SCAFFOLD) == 0
    assert simulate(file, f"resume={twice}", "rounds=5", "evaluate.every=1", *SCAFFOLD) == 0
    assert summary(once)["weights_sha256"] == summary(twice)["weights_sha256"]
    assert "rounds: 5" in (twice / "config.yaml").read_text()


def test_a_federation_never_resumes_with_fewer_rounds(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert simulate(file, f"run_dir={run}", "rounds=3") == 0
    saved = (run / "config.yaml").read_bytes()
    assert simulate(file, f"resume={run}", "rounds=2") == 2
    assert "rounds: is 2, and this run has finished 3; set rounds=3 or more" in capsys.readouterr().err
    assert (run / "config.yaml").read_bytes() == saved and summary(run)["rounds"] == 3


@pytest.mark.parametrize(
    "first, then, said",
    [
        ([], ["strategy.kind=fedprox"], "strategy.kind: is 'fedprox', and was 'fedavg' when this run began"),
        ([], ["clients=5"], "clients: is 5, and was 6"),
        ([], ["evaluate.held_out=0.5"], "evaluate.held_out: is 0.5, and was 0.2"),
        ([], ["transforms=[{kind: int8}]"], "transforms: is "),
        (ASYNCHRONOUS, [*ASYNCHRONOUS, "rounds=4"], "rounds: is 4, and was 3"),
    ],
)
def test_a_federation_does_not_go_on_as_another_one(
    first: list[str], then: list[str], said: str, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert simulate(file, f"run_dir={run}", "rounds=3", *first, "--quiet") == 0
    kept = (run / "config.yaml").read_text()
    capsys.readouterr()
    assert simulate(file, f"resume={run}", *then, "--quiet") == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert (run / "config.yaml").read_text() == kept


def test_init_starts_from_the_weights_of_another_run(file: str, tmp_path: Path) -> None:
    long, short, fresh = tmp_path / "long", tmp_path / "short", tmp_path / "fresh"
    assert main(["train", file, "--quiet"]) == 2  # a federation is no training run
    assert simulate(file, f"run_dir={long}", "rounds=20", "--quiet") == 0
    assert simulate(file, f"run_dir={short}", f"init={long}", "rounds=1", "--quiet") == 0
    assert simulate(file, f"run_dir={fresh}", "rounds=1", "--quiet") == 0
    losses = [summary(run)["metrics"]["loss"] for run in (long, short, fresh)]
    assert losses[1] < losses[0] + 0.1 < losses[2]


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, said",
    [
        (["clients=500"], "clients: 500 clients of at least 1 training examples need 500, there are 142; lower"),
        (["cohort=7"], "cohort: must be between 1 and the number of clients (6), got 7"),
        (["clients=0"], "clients: must be at least 1, got 0"),
        (["clients=null"], "clients: partition.kind iid does not say how many there are; set clients"),
        (["partition.kind=dirichlet", "partition.alpha=0"], "partition.alpha: must be above 0 and finite, got 0.0"),
        (["partition.kind=dirchlet"], "partition.kind: unknown kind 'dirchlet'; did you mean 'dirichlet'?"),
        (["strategy.kind=krum"], "strategy.byzantine: krum needs 5 replies a round to withstand 1, the cohort has 3"),
        (["stratgy.kind=krum"], "stratgy: unknown key; did you mean 'strategy'?"),
        (["strategy.server_ler=2"], "strategy.server_ler: unknown key; did you mean 'server_lr'?"),
        (["transforms=[{kind: int8}, {kind: clipping}]"], "transforms.1: clipping must come before int8; swap them"),
        (["transforms=[{kind: clipping, nrom: 3}]"], "transforms.0.nrom: unknown key; did you mean 'norm'?"),
        (["transforms={kind: int8}"], "transforms: expected a list of sections with a kind"),
        (["address=head:6379"], "address: only engine=pool uses a Ray cluster; set engine=pool"),
        (["train.shards=2"], "train.shards: each client trains in one process"),
        (["train.patience=3", "train.evaluate_every=1"], "train.patience: clients train for local_epochs and do not"),
        (["train.precision=fp16"], "train.precision: fp16 scales losses"),
        (["local_epochs=1e30"], "local_epochs: must be at most 1,000,000, got 1e+30"),
        (["evaluate.fine_tune_epochs=1e9"], "evaluate.fine_tune_epochs: must be 0 (off) or more, at most 1,000,000"),
        (["strategy={kind: fedadam, tau: 1e308}"], "strategy.tau: must be at most 1e+09, got 1e+308"),
        (["train.epochs=3"], "train.epochs: clients train for local_epochs in each round"),
        ([*BATCH_NORM, "privacy.clip=1"], "model.norm: batch statistics let every example act on the gradients"),
        ([*BATCH_NORM, "train.accumulate=2"], "model.norm: batch statistics depend on how a batch is split"),
        ([*IMAGES, "data.augment.mixup=0.2", "privacy.clip=1"], "data.augment.mixup: puts each example into the"),
        ([*BATCH_NORM, "train.batch_size=1"], "clients: client 1: a batch of one row has no batch statistics where"),
        (["strategy.kind=fedbuff"], "cohort: an asynchronous server steps after strategy.buffer replies"),
        (["attack.kind=sign_flip", "attack.clients=[9]"], "attack.clients: there is no client 9; they are numbered"),
        (["devices.dropout=1"], "devices.dropout: must be in [0, 1), got 1.0"),
        (["engine=ray"], "engine: should be 'inproc', 'pool' or 'flower', got 'ray'"),
        (["resume=true"], "resume: true goes on in run_dir, which is not set"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    words: list[str], said: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate(file, *words, "--quiet") == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"hanse: {said}") and captured.err.count("\n") == 1
    assert captured.out == "" and not runs_root().exists()


@pytest.mark.parametrize(
    "words, exit_code, said",
    [
        (["data.path=nothing.csv"], 3, "nothing.csv: no such file"),
        (["resume=nothing"], 3, "nothing: no such run"),
        (["init=nothing"], 3, "nothing: no such run"),
        pytest.param(
            ["device=cuda"], 4, "device: cuda is not available",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)  # fmt: skip
def test_what_is_missing_is_said_before_anything_is_written(
    words: list[str], exit_code: int, said: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate(file, *words, "--quiet") == exit_code
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1 and not runs_root().exists()


def test_a_federation_needs_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate() == 2
    assert "name a config file, or a Flower app with --app DIR" in capsys.readouterr().err


def test_a_deployment_is_told_paths_that_mean_the_same_in_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mapping = {"data": {"kind": "table", "path": "a.csv"}, "model": {"kind": "mlp"}, "init": "old/model"}
    words = {"devices.availability": "trace", "devices.trace": "b.csv"}
    run = absolute(parse_federate(mapping, words))
    assert run.recipe.data.path == str(tmp_path / "a.csv") and run.init == str(tmp_path / "old/model")
    assert run.devices is not None and run.devices.trace == str(tmp_path / "b.csv")
    bundled = parse_federate(mapping, {"data.path": "bundled:wine", "init": None})
    assert absolute(bundled) == bundled


# --- from Python ---------------------------------------------------------------------------------------------------


def test_the_function_does_what_the_command_does(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = hanse.simulate(file, {"rounds": 2, "strategy.kind": "fedavgm"}, quiet=True)
    assert capsys.readouterr().out == "" and result.run.parent == runs_root()
    assert result.summary == summary(result.run) and result.summary["rounds"] == 2
    assert result.metrics["accuracy"] == result.summary["metrics"]["accuracy"]
    assert simulate(result.run / "config.yaml", "--quiet") == 0
    assert summary(runs_root() / "latest")["weights_sha256"] == result.summary["weights_sha256"]
    with pytest.raises(ConfigError, match=r"^rouns: unknown key; did you mean 'rounds'"):
        hanse.simulate({"data": {"kind": "table"}, "model": {"kind": "mlp"}}, {"rouns": 3})


# --- the files that come with Hanse --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_config_file_is_short_says_its_command_and_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = path.read_text().splitlines()
    assert len(text) <= 25 and text[0].startswith(f"# hanse federate simulate configs/federate/{path.name} ")
    monkeypatch.chdir(ROOT)
    command = shlex.split(text[0].removeprefix("# ").split("   ")[0])[1:]
    assert main(["config", "validate", *command[2:]]) == 0
    assert main([*command, "rounds=2", "evaluate={every: 0, clients: 5}", "--quiet"]) == 0
    assert summary(runs_root() / "latest")["rounds"] == 2


def test_the_config_files_that_scripts_rely_on_are_there() -> None:
    wanted = {"digits", "digits-scaffold", "digits-devices", "digits-async", "digits-attack", "topics"}
    assert wanted <= {path.stem for path in CONFIGS}


def test_a_run_that_is_gone_on_with_before_its_first_checkpoint_begins_with_its_init_again(
    tmp_path: Path, file: str
) -> None:
    first, whole, resumed = tmp_path / "first", tmp_path / "whole", tmp_path / "resumed"
    assert simulate(file, f"run_dir={first}", "--quiet") == 0
    assert simulate(file, f"run_dir={whole}", f"init={first}", "--quiet") == 0
    assert simulate(file, f"run_dir={resumed}", f"init={first}", "--quiet") == 0
    for left in ("checkpoints", "model"):
        shutil.rmtree(resumed / left)  # as if it had been killed before it could save anything
    (resumed / "summary.json").unlink()
    assert simulate(file, f"run_dir={resumed}", "resume=true", "--quiet") == 0
    sha = [json.loads((run / "summary.json").read_text())["weights_sha256"] for run in (first, whole, resumed)]
    assert sha[1] == sha[2] != sha[0]


def test_a_run_killed_after_its_last_round_still_tells_how_the_clients_fare(tmp_path: Path, file: str) -> None:
    run = tmp_path / "run"
    assert simulate(file, f"run_dir={run}", "--quiet") == 0
    before = json.loads((run / "summary.json").read_text())
    (run / "summary.json").unlink()
    assert simulate(file, f"run_dir={run}", "resume=true", "--quiet") == 0
    after = json.loads((run / "summary.json").read_text())
    for name in ("evaluation", "weights_sha256", "simulated_s", "metrics"):
        assert after[name] == before[name], name


def test_a_federation_in_which_no_reply_counts_for_three_rounds_ends_with_the_first_fault(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate(file, "max_norm=1e-9", "rounds=5") == 5
    assert "no reply has counted in 3 rounds; client" in capsys.readouterr().err
