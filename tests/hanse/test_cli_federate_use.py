"""What is done with a federation beside running it: partitions, replays, lists, configs; and any Flower app."""

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import numpy as np
import pytest

from core.config import parse_run, read
from core.storage.store import runs_root
from federated.run import FederateRun
from hanse.cli import main

ROOT = Path(__file__).resolve().parents[2]
DIGITS = str(ROOT / "configs/federate/digits.yaml")
APP = ROOT / "tests/federated/apps/plain"
FILE = """\
data: {kind: table, path: "bundled:wine"}
model: {kind: mlp, hidden: [8]}
optimizer: {kind: sgd, lr: 0.05, momentum: 0.0}
train: {batch_size: 16}
clients: 6
cohort: 3
rounds: 4
checkpoint_every: 2
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "wine.yaml"
    path.write_text(FILE)
    return str(path)


@pytest.fixture
def run(file: str, tmp_path: Path) -> Path:
    assert main(["federate", "simulate", file, f"run_dir={tmp_path / 'run'}", "--quiet"]) == 0
    return tmp_path / "run"


def asked(run: Path) -> dict[int, dict[str, list[Any]]]:
    """By round: who worked, and what each told."""
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {record["round"]: record["cohort"] for record in records if record["split"] == "cohort"}


def replay(run: object, round: int, client: int) -> int:
    return main(["runs", "replay", str(run), "--round", str(round), "--client", str(client)])


# --- partitions ----------------------------------------------------------------------------------------------------


def test_a_partition_is_shown_line_by_line(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["federate", "partition", file, "partition.kind=labels", "partition.per_client=1"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("6 clients, 142 examples: ") and said[0].endswith("in effect 1.0 of 3 labels (median)")
    assert said[1] == "client  examples  class_0 to class_2"
    assert [line.split()[0] for line in said[2:8]] == list("012345")
    assert said[-1] == f"next    hanse federate simulate {file} partition.kind=labels partition.per_client=1"
    assert not runs_root().exists()


def test_a_partition_is_drawn_and_counted(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "picture.svg"
    assert main(["federate", "partition", file, f"out={picture}", "--json"]) == 0
    *clients, end = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert picture.read_text().startswith("<svg ") and end["file"] == str(picture)
    assert [row["client"] for row in clients] == list(range(6))
    assert all(sum(row["counts"]) == row["examples"] for row in clients)
    assert sum(row["examples"] for row in clients) == 142


@pytest.mark.parametrize(
    "words, said",
    [
        (["out=picture.png"], "out: should end in .svg, got 'picture.png'"),
        (["out=nowhere/picture.svg"], "out: nowhere/picture.svg cannot be written: nowhere is no directory"),
        (["partition.kind=column"], "partition.column: name the column of the table whose values are the clients"),
        (["partition.kind=labels", "partition.per_client=4"], "partition.per_client: 4 labels a client, but there are"),
    ],
)
def test_a_partition_that_cannot_be_is_one_line(
    words: list[str], said: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["federate", "partition", file, *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"hanse: {said}") and captured.err.count("\n") == 1 and captured.out == ""


# --- replays -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["transforms=[{kind: int8}]", "checkpoint_every=3"],
        ["strategy.kind=scaffold", "transforms=[{kind: top_k}]"],
        ["strategy={kind: fedbuff, buffer: 2, concurrency: 3}", "cohort=null", "devices={}"],
        ["strategy.kind=median", "attack={kind: alie, share: 0.5}", "schedule.kind=cosine"],
    ],
    ids=["int8", "scaffold", "fedbuff", "median"],
)
def test_every_clients_work_is_done_again_to_the_last_bit(
    words: list[str], file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["federate", "simulate", file, f"run_dir={run}", *words, "--quiet"]) == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for round, cohort in asked(run).items():
        for client in cohort["client"][:1]:
            assert replay(run, round, client) == 0
            assert "replay the same to the last bit" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_replay_shows_both_and_fails_where_they_differ(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cohort = asked(run)[3]
    client, loss = cohort["client"][1], cohort["loss"][1]
    metrics = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(metrics.replace(repr(loss), "0.25"))
    capsys.readouterr()
    assert replay(run, 3, client) == 1
    said = capsys.readouterr().out
    assert f"loss      {loss!r}" in said and "0.25" in said and "replay not the same" in said
    assert f"next    hanse runs show {run}" in said


def test_a_replay_begins_from_the_weights_that_the_run_began_from(run: Path, file: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert main(["federate", "simulate", file, f"run_dir={other}", f"init={run}", "rounds=1", "--quiet"]) == 0
    assert replay(other, 1, asked(other)[1]["client"][0]) == 0


def test_what_cannot_be_replayed_is_one_line(run: Path, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    idle = next(client for client in range(6) if client not in asked(run)[2]["client"])
    capsys.readouterr()
    for round, client, said in [
        (5, 0, "round: this run has rounds 1 to 4, got 5"),
        (0, 0, "round: this run has rounds 1 to 4, got 0"),
        (2, idle, f"client: {idle} did not work in round 2; clients "),
        (2, 99, "client: 99 did not work in round 2; clients "),
    ]:
        assert replay(run, round, client) == 2
        assert capsys.readouterr().err.startswith(f"hanse: {said}")
    assert replay("nothing", 1, 1) == 3
    assert main(["federate", "simulate", file, "rounds=1", "privacy={noise_multiplier: 1.0}", "--quiet"]) == 0
    capsys.readouterr()
    assert replay("latest", 1, 0) == 2
    assert "privacy.noise: secure noise cannot be drawn again" in capsys.readouterr().err
    plain = run.parent / "plain"
    words = ["train.steps=1", f"run_dir={plain}", "--quiet"]
    assert main(["train", str(ROOT / "configs/train/digits-mlp.yaml"), *words]) == 0
    capsys.readouterr()
    assert replay(plain, 1, 0) == 2
    assert "is no federation; only the rounds of a federation can be replayed" in capsys.readouterr().err


# --- lists ---------------------------------------------------------------------------------------------------------


def test_lists_of_runs_count_the_rounds_of_a_federation(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["name=long"], ["name=short", "strategy.kind=fedadam", "rounds=2"]):
        assert main(["federate", "simulate", file, *words, "--quiet"]) == 0
    (first,), (second,) = runs_root().glob("*-long-*"), runs_root().glob("*-short-*")
    capsys.readouterr()
    assert main(["runs", "list"]) == 0
    said = capsys.readouterr().out
    assert "4 rounds" in said and "2 rounds" in said and "test accuracy" in said
    assert main(["runs", "show", first.name]) == 0
    assert "rounds   4" in capsys.readouterr().out
    assert main(["runs", "compare", first.name, second.name]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["strategy.kind", '"fedavg"', '"fedadam"'] in rows and ["rounds", "4", "2"] in rows
    assert any(row[0] == "accuracy" for row in rows)


# --- configs -------------------------------------------------------------------------------------------------------


def test_a_shown_federation_is_a_config_of_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["rounds=7", "transforms=[{kind: clipping}, {kind: weighting, by: sqrt}]"]
    assert main(["config", "show", DIGITS, *words]) == 0
    shown = tmp_path / "shown.yaml"
    shown.write_text(capsys.readouterr().out)
    run = parse_run(FederateRun, read(shown))
    assert run.rounds == 7 and [transform.kind for transform in run.transforms] == ["clipping", "weighting"]
    assert main(["config", "show", str(shown)]) == 0
    assert capsys.readouterr().out == shown.read_text()


@pytest.mark.parametrize(
    "key", ["rounds: 3", "clients: 3", "cohort: 3", "partition: {}", "local_epochs: 2", "local_steps: 2"]
)
def test_a_file_with_a_key_of_a_federation_is_validated_as_one(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "it.yaml"
    file.write_text(f"data: {{kind: image}}\nmodel: {{kind: mlp}}\n{key}\n")
    assert main(["config", "validate", str(file)]) == 0
    assert f"next    hanse federate simulate {file}" in capsys.readouterr().out
    file.write_text(file.read_text() + "stratgy: {}\n")
    assert main(["config", "validate", str(file), DIGITS]) == 2
    said = capsys.readouterr().out
    assert f"{file}: stratgy: unknown key; did you mean 'strategy'?" in said and f"valid: {DIGITS}" in said


def test_the_schema_of_a_federation_takes_its_configs_and_refuses_what_the_parser_refuses(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["config", "schema", "federate"]) == 0
    schema = json.loads(capsys.readouterr().out)
    config = read(DIGITS)
    for path in (ROOT / "configs/federate").glob("digits*.yaml"):
        jsonschema.validate(read(path), schema)
    jsonschema.validate({**config, "transforms": [{"kind": "clipping", "norm": 2.0}, {"kind": "int8"}]}, schema)
    for wrong in (
        {"transforms": {"kind": "int8"}},
        {"transforms": [{"kind": "int9"}]},
        {"transforms": [{"kind": "clipping", "nrom": 2.0}]},
        {"strategy": {"kind": "krumm"}},
        {"rouns": 3},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**config, **wrong}, schema)
    assert main(["config", "schema", "fed"]) == 2
    assert "there is no kind of run 'fed'; one of train, federate" in capsys.readouterr().err


# --- other people's Flower apps ------------------------------------------------------------------------------------


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A copy, so that nothing is written beside the original."""
    return Path(shutil.copytree(APP, tmp_path / "app"))


def test_a_flower_app_runs_with_another_run_config(
    app: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for lr in (0.1, 0.1, 0.4):
        words = ["clients=5", f"run_config.lr={lr}", f"run_config.out={tmp_path / 'out.npz'}"]
        assert main(["federate", "simulate", "--app", str(app), *words]) == 0
        with np.load(tmp_path / "out.npz") as arrays:
            found.append(arrays["arr_0"])
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])
    said = capsys.readouterr().out
    assert "log: [ROUND 3/3]" in said and "result  exchanges 6  failed 0" in said and "clients  5" in said


def test_with_json_a_flower_app_tells_its_exchanges_and_failures(
    app: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["clients=4", "run_config.fail-partition=1", f"run_config.out={tmp_path / 'out.npz'}", "--json"]
    assert main(["federate", "simulate", "--app", str(app), *words]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    exchanges = [line for line in said if line["event"] == "exchange"]
    assert [line["round"] for line in exchanges] == [1, 1, 2, 2, 3, 3] and exchanges[1]["clients"] == 4
    failures = [line for line in said if line["event"] == "failure"]
    assert len(failures) == 1 and failures[0]["client"] == 1 and "has no data" in failures[0]["traceback"]
    assert said[-1]["event"] == "end" and said[-1]["summary"]["failed"] >= 1


@pytest.mark.parametrize(
    "words, said",
    [
        (["run_config.lrr=1"], "run_config.lrr: the app has no such key; did you mean 'lr'?"),
        (["rounds=3"], "rounds: a Flower app is told clients, engine, workers, address and run_config.KEY"),
        (["clients=x"], "clients: should be a valid integer, got 'x'"),
        (["clients=0"], "clients: must be at least 1, got 0"),
        (["clients=1"], "clients: the app's strategy waits for 2 nodes and there are 1; raise clients"),
        (["engine=flower"], "engine: should be 'inproc' or 'pool', got 'flower'"),
        (["address=head:6379", "engine=inproc"], "address: only goes with engine=pool"),
        (["train.lr=1"], "train.lr: a Flower app is told"),
    ],
)
def test_what_a_flower_app_cannot_be_told_is_one_line(
    words: list[str], said: str, app: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["federate", "simulate", "--app", str(app), *words, "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"hanse: {said}") and error.count("\n") == 1


def test_what_is_no_flower_app_is_one_line(app: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = (app / "pyproject.toml").read_text()
    (app / "pyproject.toml").write_text(project.replace('clientapp = "plain_app.client_app:app"\n', ""))
    for words, said in [
        (["--app"], "Option '--app' requires an argument"),
        (["--app", str(tmp_path / "nowhere")], "nowhere has no pyproject.toml; give the directory of a Flower app"),
        (["--app", str(tmp_path)], "has no pyproject.toml; give the directory of a Flower app"),
        (["--app", str(app)], "clientapp"),
    ]:
        assert main(["federate", "simulate", *words]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
