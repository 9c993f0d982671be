"""`hanse federate trees` and `hanse federate statistics`: what they say, what they leave behind, what they refuse."""

import json
import os
import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.data import Preprocess, Table, load, open_with
from core.data.sources.bundled import read_table
from core.storage.store import RunDirectory, runs_root
from federated.trees import client_app, simulate
from federated.trees.booster import predict
from federated.trees.simulate import simulate_trees
from hanse.cli import main
from hanse.federate_trees import parse_trees
from tests.hanse.left import lines, summary
from tests.hanse.test_report import Checked

ROOT = Path(__file__).resolve().parents[2]
FILE = """\
data: {kind: table, path: "bundled:wine"}
trees: {rounds: 3, max_depth: 3, subsample: 0.8}
clients: 4
seed: 7
"""
NETWORK = """\
data: {kind: table, path: "bundled:wine"}
model: {kind: mlp, hidden: [8]}
clients: 4
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    pytest.importorskip("xgboost", reason="the extra `trees` is not installed")
    path = tmp_path / "wine.yaml"
    path.write_text(FILE)
    return str(path)


@pytest.fixture
def network(tmp_path: Path) -> str:
    """A federation of networks over the same table."""
    path = tmp_path / "network.yaml"
    path.write_text(NETWORK)
    return str(path)


def trees(*words: object) -> int:
    return main(["federate", "trees", *map(str, words)])


# --- trees ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["bagging", "cyclic"])
def test_the_command_grows_the_forest_of_the_function_and_records_its_rounds(mode: str, file: str) -> None:
    assert trees(file, f"trees.mode={mode}", "--quiet") == 0
    run = parse_trees(file, {"trees.mode": mode})
    partition, data = run.deal()
    forest = simulate_trees(replace(run.trees, seed=7), run.clients_of(partition, data))
    directory = runs_root() / "latest"
    assert (directory / "model/booster.json").read_bytes() == forest.model
    records = lines(directory / "metrics.jsonl", split="clients")
    assert [record.pop("round") for record in records] == [1, 2, 3]
    for record, metrics in zip(records, forest.rounds, strict=True):
        assert record == {"rounds": 3, "split": "clients", **metrics}
    trained = lines(directory / "metrics.jsonl", split="train")
    everyone = 4 if mode == "bagging" else 1
    assert [(r["round"], r["clients"], r["failed"]) for r in trained] == [(i, everyone, 0) for i in (1, 2, 3)]
    assert all(record["bytes_up"] > 0 and record["bytes_down"] > 0 for record in trained)


def test_the_order_in_which_clients_reply_changes_nothing(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trees(file, "--quiet") == 0
    found = summary(runs_root() / "latest")["model_sha256"]
    ask = simulate.PoolGrid.send_and_receive
    monkeypatch.setattr(simulate.PoolGrid, "send_and_receive", lambda *words, **more: ask(*words, **more)[::-1])
    assert trees(file, "--quiet") == 0
    assert summary(runs_root() / "latest")["model_sha256"] == found


def test_trees_leave_everything_in_their_directory(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert trees(file) == 0
    said = capsys.readouterr().out
    (run,) = (path for path in runs_root().iterdir() if not path.is_symlink())
    assert run.name.split("-")[2] == "wine" and f"next    hanse runs show {run.name}" in said
    record = json.loads((run / "run.json").read_text())
    expected = {"verb": "federate-trees", "status": "done", "seed": 7, "workers": 0}
    assert expected.items() <= record.items() and record["data"]["sizes"]["test"] == 18
    found = summary(run)
    assert found["rounds"] == 3 and found["clients"] == 4 and found["split"] == "test" and found["faults"] == 0
    assert np.sum(found["details"]["confusion"]) == 18 and "test accuracy" in said
    last = lines(run / "metrics.jsonl", split="clients")[-1]
    assert found["evaluation"]["clients"]["metrics"].items() <= last.items() and last["round"] == 3
    page = Checked((run / "report.html").read_text()).text
    assert "Learning curves" in page and "Partition" in page and "4 clients" in page
    assert trees(run / "config.yaml", "--quiet") == 0
    assert summary(runs_root() / "latest")["model_sha256"] == found["model_sha256"]


def test_the_model_directory_is_all_that_predicting_takes(file: str, wines: Path) -> None:
    assert trees(file, "--quiet", "trees.rounds=10") == 0
    model = runs_root() / "latest/model"
    data = open_with(Preprocess.load(model), Table(path=str(wines), target="target"))
    rows = data.splits["test"]
    inputs, targets = rows.take(rows.addresses(0, None))
    found = predict((model / "booster.json").read_bytes(), inputs)
    assert targets is not None and (found.argmax(1) == targets).double().mean() > 0.95
    assert found.sum(1).numpy() == pytest.approx(1)
    own = load(Table(path="bundled:wine"), "class", 7)
    held_out = own.splits["test"]
    inputs, targets = held_out.take(held_out.addresses(0, None))
    right = (predict((model / "booster.json").read_bytes(), inputs).argmax(1) == targets).double().mean()
    assert summary(model.parent)["metrics"]["accuracy"] == pytest.approx(right.item())


def test_real_targets_are_measured_in_their_unit(file: str) -> None:
    words = ["data.path=bundled:diabetes", "target=real", "trees.rounds=12", "trees.eta=0.2"]
    assert trees(file, *words, "--quiet") == 0
    found = summary(runs_root() / "latest")
    assert 40 < found["metrics"]["rmse"] < 77 and 0.1 < found["metrics"]["r2"] < 1  # the targets' deviation is 77


def test_without_rows_of_the_server_the_scores_are_those_of_the_clients(file: str) -> None:
    nothing = "data.split={validation: 0.0, test: 0.0}"
    assert trees(file, nothing, "--quiet") == 0
    found = summary(runs_root() / "latest")
    assert found["split"] == "clients" and found["metrics"] == found["evaluation"]["clients"]["metrics"]
    assert trees(file, nothing, "held_out=0.0", "--quiet") == 0
    found = summary(runs_root() / "latest")
    assert found["split"] is None and found["metrics"] == {} and found["rounds"] == 3


def test_with_json_every_line_is_an_object_and_the_last_is_the_end(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trees(file, "--json") == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert records[0]["event"] == "start" and records[-1]["event"] == "end"
    assert records[-1]["summary"] == summary(Path(records[-1]["run"]))
    assert [r["round"] for r in records if r.get("split") == "clients"] == [1, 2, 3]


def test_lists_and_pages_of_runs_cope_with_trees(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert trees(file, "--quiet") == 0 and trees(file, "trees.rounds=2", "--quiet") == 0
    capsys.readouterr()
    assert main(["runs", "list"]) == 0 and main(["runs", "show", "latest"]) == 0
    said = capsys.readouterr().out
    assert "2 rounds" in said and "3 rounds" in said and "test accuracy" in said
    assert "metrics.jsonl  model" in said and "hanse evaluate" not in said
    names = [path.name for path in sorted(runs_root().iterdir()) if not path.is_symlink()]
    page = runs_root().parent / "page.html"
    assert main(["runs", "compare", *names, f"out={page}"]) == 0
    assert "trees.rounds" in capsys.readouterr().out and "2 federations" in Checked(page.read_text()).text
    assert main(["evaluate", "latest"]) == 3
    assert "model/booster.json" in capsys.readouterr().err


def test_a_client_that_fails_is_named_and_the_others_go_on(
    file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grow = client_app.grow

    def failing(model: bytes, rows: Any, plan: Any, turn: int, client: int) -> bytes:
        if (turn, client) == (2, 1):
            raise MemoryError("no room for a tree")
        return grow(model, rows, plan, turn, client)

    monkeypatch.setattr(client_app, "grow", failing)
    assert trees(file) == 0
    assert "client failed" in capsys.readouterr().out
    run = runs_root() / "latest"
    (event,) = lines(run / "events.jsonl", event="client_failed")
    assert (event["round"], event["client"]) == (2, 1) and "no room for a tree" in event["reason"]
    (failure,) = lines(run / "events.jsonl", event="failure")
    assert "in failing" in failure["traceback"]
    trained = lines(run / "metrics.jsonl", split="train")
    assert [(record["clients"], record["failed"]) for record in trained] == [(4, 0), (3, 1), (4, 0)]
    assert summary(run)["faults"] == 1
    assert "no room for a tree" in Checked((run / "report.html").read_text()).text


def test_a_reply_that_holds_no_trees_is_put_aside_and_its_client_named(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    share_of = client_app.share_of
    seen = list[bytes]()

    def spoiled(model: bytes, plan: Any) -> bytes:
        seen.append(model)
        return b"{}" if len(seen) == 3 else share_of(model, plan)  # the third client in the first round

    monkeypatch.setattr(client_app, "share_of", spoiled)
    assert trees(file, "--quiet") == 0
    (event,) = lines(runs_root() / "latest/events.jsonl", event="quarantined")
    assert (event["round"], event["client"], event["reason"]) == (1, 2, "is not a model of trees in JSON")


def test_ctrl_c_ends_a_run_that_is_recorded_as_stopped(
    file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record, sent = RunDirectory.record, list[bool]()

    def recorded(self: RunDirectory, line: dict[str, Any]) -> None:
        record(self, line)
        if line.get("round") == 2 and not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RunDirectory, "record", recorded)
    assert trees(file, "trees.rounds=100") == 130
    said = capsys.readouterr().out
    assert "cannot be resumed" in said and "stopped after round" in said
    run = runs_root() / "latest"
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    assert not (run / "summary.json").exists() and not (run / "model/booster.json").exists()
    assert 2 <= lines(run / "metrics.jsonl")[-1]["round"] < 100 and (run / "report.html").is_file()


@pytest.mark.ray
@pytest.mark.slow
def test_two_ray_workers_grow_the_forest_of_this_process(file: str) -> None:
    found = []
    for words in ([], ["engine=pool", "workers=2", "cpus_per_worker=0.5"]):
        assert trees(file, *words, "--quiet") == 0
        found.append(summary(runs_root() / "latest")["model_sha256"])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "words, exit_code, said",
    [
        (["data={kind: image}"], 2, "data.kind: trees grow on the rows of a table, got image; write kind: table"),
        (["data={kind: text}"], 2, "data.kind: trees grow on the rows of a table, got text; write kind: table"),
        (["clients=500"], 2, "clients: 500 clients of at least 1 training examples need 500, there are 142; lower"),
        (["clients=0"], 2, "clients: must be at least 1, got 0"),
        (["held_out=1"], 2, "held_out: must be in [0, 1), got 1.0"),
        (["trees.mod=cyclic"], 2, "trees.mod: unknown key; did you mean 'mode'?"),
        (["trees.eta=2"], 2, "trees.eta: must be above 0 and at most 1, got 2.0"),
        (["trees.seed=3"], 2, "trees.seed: the run's seed is that of its trees; write seed: 3"),
        (["address=head:6379"], 2, "address: only goes with engine=pool; set engine=pool"),
        (["engine=flower"], 2, "engine: should be 'inproc' or 'pool', got 'flower'"),
        (["target=real"], 3, "bundled:wine: "),
        (["data.path=nothing.csv"], 3, "nothing.csv: no such file"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    words: list[str], exit_code: int, said: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trees(file, *words, "--quiet") == exit_code
    captured = capsys.readouterr()
    assert captured.err.startswith(f"hanse: {said}") and captured.err.count("\n") == 1
    assert captured.out == "" and not runs_root().exists()


def test_a_missing_library_is_one_line_that_names_the_extra(
    file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "xgboost", None)
    assert trees(file, "--quiet") == 2
    assert capsys.readouterr().err == "hanse: trees: need the library xgboost; run: pip install 'hanse[trees]'\n"
    assert not runs_root().exists()


def test_the_config_file_is_short_says_its_command_and_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xgboost", reason="the extra `trees` is not installed")
    monkeypatch.chdir(ROOT)
    text = (ROOT / "configs/federate/trees.yaml").read_text().splitlines()
    command = shlex.split(text[0].removeprefix("# ").split("   ")[0])[1:]
    assert len(text) <= 25 and command == ["federate", "trees", "configs/federate/trees.yaml"]
    assert main(["config", "validate", command[-1]]) == 0
    assert main([*command, "trees.rounds=2", "--quiet"]) == 0
    assert summary(runs_root() / "latest")["rounds"] == 2


def test_a_shown_config_of_trees_is_one_of_the_same_run(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "show", file, "trees.rounds=5"]) == 0
    (tmp_path / "shown.yaml").write_text(capsys.readouterr().out)
    assert parse_trees(tmp_path / "shown.yaml", {}) == parse_trees(file, {"trees.rounds": 5})
    assert main(["federate", "partition", file]) == 0
    assert f"next    hanse federate trees {file}" in capsys.readouterr().out


# --- statistics ----------------------------------------------------------------------------------------------------


def described(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """By name: columns and labels; and the summary."""
    capsys.readouterr()
    assert main(["federate", "statistics", *words, "--json"]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    columns = {record["column"]: record for record in said if record["event"] == "column"}
    labels = {record["label"]: record for record in said if record["event"] == "label"}
    return columns, labels, said[-1]["summary"]


OPEN = "statistics={least_count: 1, bins_share: 1, tolerance: 0, extremes: true, least_sites: 1}"  # hides nothing


def test_statistics_say_nothing_of_single_rows_unless_told_to(network: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["federate", "statistics", network, "quantiles=[0.0, 0.5, 1.0]"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == ["column", "count", "mean", "std", "q0", "q50", "q100"]
    (withheld,) = [line for line in said if line.startswith("withheld: ")]
    assert "the least and the largest values" in withheld and withheld.endswith("`statistics` says what sites tell")
    columns, labels, _ = described(capsys, network, "quantiles=[0.0, 0.5, 1.0]")
    assert all(label["count"] == 0 or label["count"] >= 10 for label in labels.values())
    values = read_table("wine").inputs
    for name, own in zip(read_table("wine").columns, np.float32(values).astype(float).T, strict=True):
        told = [columns[name][mark] for mark in ("q0", "q50", "q100")]
        assert not set(told) & set(own) and own.min() < told[0] < told[2] < own.max()
        assert told[1] == pytest.approx(np.median(own), abs=0.35 * own.std())
    assert main(["federate", "statistics", network, "clients=2"]) == 3
    assert "0 of 2 sites tell of their rows, and a sum is of 3 or more" in capsys.readouterr().err


@pytest.mark.parametrize("partition", ["{kind: iid}", "{kind: dirichlet, alpha: 0.3}"])
def test_statistics_are_those_of_all_rows_together_whoever_has_them(
    partition: str, network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"partition={partition}", "data.split={validation: 0.0, test: 0.0}", "quantiles=[0, 0.25, 0.999]", OPEN]
    columns, labels, said = described(capsys, network, *words)
    table = read_table("wine")
    assert said == {"clients": 4, "rows": 178, "columns": 13} and list(columns) == list(table.columns)
    for name, values in zip(table.columns, np.float32(table.inputs).astype(float).T, strict=True):
        found = columns[name]
        assert found["count"] == 178 and (found["min"], found["max"]) == (values.min(), values.max())
        assert [found["mean"], found["std"]] == pytest.approx([values.mean(), values.std()], rel=1e-12)
        places = [found["q0"], found["q25"], found["q99.9"]]
        assert places == pytest.approx(np.quantile(values, [0, 0.25, 0.999]).tolist(), rel=1e-12)
    counts = np.bincount(table.targets.astype(int))
    assert [label["count"] for label in labels.values()] == counts.tolist()
    assert [label["share"] for label in labels.values()] == pytest.approx(counts / 178)


def test_statistics_of_real_targets_count_rows_that_clients_have_and_no_others(
    network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data.path=bundled:diabetes", "objective.kind=regression", "quantiles=[]", OPEN]
    columns, labels, said = described(capsys, network, *words)
    rows = load(Table(path="bundled:diabetes"), "real", 0).sizes["train"]
    assert not labels and said["rows"] == rows and list(columns)[-1] == "target"
    target = columns["target"]
    assert target["count"] == rows and 100 < target["mean"] < 200 and not any(key.startswith("q") for key in target)


def test_a_table_of_statistics_is_for_people_and_takes_the_file_of_trees_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "trees.yaml").write_text(FILE)
    assert main(["federate", "statistics", str(tmp_path / "trees.yaml"), "clients=3"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].split() == ["column", "count", "mean", "std", "q10", "q50", "q90"]
    assert "result  clients 3  rows 142  columns 13" in said
    assert said[-1] == f"next    hanse federate partition {tmp_path / 'trees.yaml'} clients=3"


def test_statistics_see_the_noise_that_clients_have(network: str, capsys: pytest.CaptureFixture[str]) -> None:
    plain, _, _ = described(capsys, network)
    noisy, _, _ = described(capsys, network, "partition={kind: feature, noise: 5.0}")
    assert all(noisy[name]["std"] > 2 * plain[name]["std"] for name in plain)


@pytest.mark.parametrize(
    "words, said",
    [
        (
            ["data={kind: image}", "model={kind: cnn}"],
            "data.kind: statistics are those of a table's columns, got image",
        ),
        (["data={kind: text}", "model={kind: gpt}"], "data.kind: statistics are those of a table's columns, got text"),
        (["quantiles=[1.5]"], "quantiles: must be in [0, 1], got 1.5"),
        (["quantiles=[0.5, 0.5]"], "quantiles: must name each once, got [0.5, 0.5]"),
        (["quantiles=0.5"], "quantiles: should be a valid"),
        (["quantile=[0.5]"], "quantile: unknown key"),
    ],
)
def test_what_statistics_cannot_say_is_one_line(
    words: list[str], said: str, network: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["federate", "statistics", network, *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"hanse: {said}") and captured.err.count("\n") == 1 and captured.out == ""
