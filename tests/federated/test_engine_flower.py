"""Runs on Flower: the engine's numbers beside those of this process, what ends a run, and the app for a deployment."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from core.config import dump_run, read, to_yaml
from core.errors import ConfigError, WorkerError
from core.pool import LocalPool
from core.randomness import seed_of
from core.storage.artifact import read_weights
from core.storage.store import Run, is_run, list_runs, read_run
from federated.flower.app_directory import write_app
from federated.flower.deployment import Deployment, deployment
from federated.flower.foreign import simulate as simulate_app
from hanse import deployed, federate
from hanse.console import Console
from hanse.federate import parse_federate

DIGITS = Path(__file__).parents[2] / "configs/federate/digits.yaml"
CONFIG: dict[str, Any] = {
    "name": "wine",
    "data": {"kind": "table", "path": "bundled:wine"},
    "model": {"kind": "mlp", "hidden": [8]},
    "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.0},
    "train": {"batch_size": 8},
    "clients": 2,
    "rounds": 2,
    "backend": "loop",
    "evaluate": {"every": 0, "held_out": 0.0},
}
PLAIN = {"kind": "sgd", "lr": 0.1, "momentum": 0.0}
# A ClientApp whose client 1 cannot read its data in round 2, around ours.
BREAKING = """
from flwr.clientapp import ClientApp
from federated.client_app import app as whole
app = ClientApp()

@app.query()
def who(message, context):
    return whole(message, context)

@app.train()
def train(message, context):
    if context.node_config["partition-id"] == 1 and message.content["config"]["server-round"] == 2:
        raise OSError("the disk is gone")
    return whole(message, context)
"""


def simulated(where: Path, **changes: Any) -> dict[str, Any]:
    """The summary of a run in `where`."""
    with Console.choose(quiet=True) as console:
        return federate.simulate(parse_federate({**CONFIG, "run_dir": str(where), **changes}, {}), console)[1]


# --- on a deployment -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """One deployment for several runs: to bring it up takes longer than any of them."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "breaking.py").write_text(BREAKING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        patch.setenv("HANSE_RUNS", str(folder / "runs"))
        patch.setenv("OMP_NUM_THREADS", "1")
        with deployment(folder / "flower", 2) as here:
            yield here


@pytest.fixture
def on_flower(here: Deployment, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """`simulated` with engine=flower, on the deployment that is there."""
    monkeypatch.setattr(deployed, "deployment", lambda directory, nodes: nullcontext(here))
    return lambda where, **changes: simulated(where, engine="flower", **changes)


@pytest.mark.slow
def test_a_deployment_comes_to_the_weights_of_this_process_with_state_on_its_nodes_and_one_that_fails_in_a_round(
    tmp_path: Path, on_flower: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"strategy": {"kind": "scaffold"}, "rounds": 3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deployed, "write_app", breaking_app)
        there = on_flower(tmp_path / "there", **changes)
    (event,) = [e for e in read_run(tmp_path / "there").events() if e["event"] == "quarantined"]
    assert (event["round"], event["client"]) == (2, 1) and event["reason"].endswith("OSError: the disk is gone")
    assert [r["clients"] for r in read_run(tmp_path / "there").metrics() if r["split"] == "train"] == [2, 1, 2]
    monkeypatch.setattr(federate.Federation, "of", failing(federate.Federation.of))
    here = simulated(tmp_path / "here", **changes)
    assert there["weights_sha256"] == here["weights_sha256"]
    assert there["metrics"] == here["metrics"] and there["rounds"] == 3
    assert there["weights_sha256"] != simulated(tmp_path / "short", **changes, local_epochs=2)["weights_sha256"]


def breaking_app(directory: Path, *arguments: Any) -> Path:
    app = write_app(directory, *arguments)
    project = (app / "pyproject.toml").read_text()
    (app / "pyproject.toml").write_text(project.replace("federated.client_app:app", "breaking:app"))
    return app


def failing(made: Callable[..., Any]) -> Callable[..., Any]:
    """Federations whose client 1 cannot read its data in round 2."""

    class Clients:
        def __init__(self, whole: Any, seed: int) -> None:
            self.whole, self.bad = whole, seed_of(seed, "client", 1, 2)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.whole, name)

        def __len__(self) -> int:
            return len(self.whole)

        def data(self, client: int, seed: int) -> Any:
            if client == 1 and seed == self.bad:
                raise OSError("the disk is gone")
            return self.whole.data(client, seed)

    def make(run: Any, weights: Any = None) -> Any:
        found = made(run, weights)
        return replace(found, clients=Clients(found.clients, run.recipe.seed))

    return make


@pytest.mark.slow
def test_an_app_with_a_strategy_of_flowers_makes_its_run_where_the_server_keeps_them(
    tmp_path: Path, here: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = {"kind": "flower", "name": "FedAdam", "arguments": {"fraction_train": 0.5, "min_train_nodes": 1}}
    app = write_app(tmp_path / "app", digits(clients=2, strategy=strategy), {"run-dir": ""})
    here.run(app)
    there = only_run(here.directory.parent / "runs")
    assert there.status == "done" and there.summary()["rounds"] == 1
    monkeypatch.setenv("HANSE_RUNS", str(tmp_path / "runs"))
    run_app(app, clients=2)
    ours, theirs = (read_weights(run.path / "model") for run in (only_run(tmp_path / "runs"), there))
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_ctrl_c_ends_a_deployment_after_its_round_and_the_run_can_go_on(tmp_path: Path) -> None:
    file, where = tmp_path / "wine.yaml", tmp_path / "run"
    file.write_text(to_yaml(CONFIG))
    words = ["federate", "simulate", str(file), f"run_dir={where}", "engine=flower", "rounds=50", "--json"]
    process = subprocess.Popen([sys.executable, "-m", "hanse", *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    next(line for line in process.stdout if json.loads(line).get("split") == "train")  # round 1
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) > 6
    os.kill(process.pid, signal.SIGINT)
    said, _ = process.communicate()
    assert process.returncode == 130
    assert psutil.wait_procs(family, timeout=20)[1] == []
    run = read_run(where)
    rounds = next(record["summary"] for record in map(json.loads, said.splitlines()) if record["event"] == "end")[
        "rounds"
    ]
    assert run.status == "stopped" and 1 <= rounds < 50
    summary = simulated(where, resume=True, rounds=rounds + 1)
    assert summary["rounds"] == rounds + 1
    assert summary["weights_sha256"] == simulated(tmp_path / "sound", rounds=rounds + 1)["weights_sha256"]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"clients": 33}, "clients: engine=flower starts a SuperNode for each of 33 clients, 32 at most"),
        ({"strategy": {"kind": "scaffold"}, "resume": True}, "resume: clients of this strategy or its transforms keep"),
        ({"transforms": [{"kind": "top_k", "share": 0.1}], "resume": True}, "resume: clients of this strategy"),
    ],
)
def test_what_a_deployment_cannot_do_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr(deployed, "deployment", None)  # nothing is to be started, least of all 33 nodes
    with pytest.raises(ConfigError, match=said):
        simulated(tmp_path / "run", engine="flower", **changes)
    assert not (tmp_path / "run").exists()


# --- the app by itself, on a pool ----------------------------------------------------------------------------------


def digits(**changes: Any) -> str:
    small = {"rounds": 1, "cohort": None, "local_epochs": 1, "model": {"kind": "mlp", "hidden": [8]}}
    return to_yaml(dump_run(parse_federate({**read(DIGITS), **small, **changes}, {})))


def run_app(app: Path, clients: int = 3, **run_config: Any) -> None:
    simulate_app(app, LocalPool(), clients, run_config, lambda record: None)


@pytest.fixture
def app(tmp_path: Path) -> Path:
    return write_app(tmp_path / "app", digits(clients=3), {"run-dir": ""})


def only_run(root: Path) -> Run:
    (run,) = list_runs(root)
    return run


def test_the_app_makes_a_run_in_the_place_of_runs(app: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HANSE_RUNS", str(tmp_path / "runs"))
    run_app(app)
    run = only_run(tmp_path / "runs")
    assert run.status == "done" and run.summary()["rounds"] == 1
    assert {"train", "clients", "validation", "test"} <= {record.get("split") for record in run.metrics()}
    assert (run.path / "model" / "model.safetensors").is_file()


def test_the_app_refuses_to_guess_where_runs_are_kept(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HANSE_RUNS", raising=False)
    with pytest.raises(
        ConfigError, match="run-dir: it is not said where runs are kept; start the SuperLink with HANSE"
    ):
        run_app(app)


def test_the_app_goes_on_in_a_directory_of_the_same_config_only(app: Path, tmp_path: Path) -> None:
    where = tmp_path / "run"
    run_app(app, **{"run-dir": str(where)})
    sha256 = read_run(where).summary()["weights_sha256"]
    (where / "summary.json").unlink()  # as if it had been killed at its end
    run_app(app, **{"run-dir": str(where)})
    assert read_run(where).summary()["weights_sha256"] == sha256 and read_run(where).status == "done"
    starts = [event["round"] for event in read_run(where).events() if event["event"] == "federation"]
    assert starts == [0, 1]
    other = write_app(tmp_path / "other", digits(clients=3, rounds=2), {"run-dir": ""})
    with pytest.raises(ConfigError, match=r"run-dir: .* holds a run of another config"):
        run_app(other, **{"run-dir": str(where)})
    for kind, said in (
        ("flower", "Flower's strategies cannot go on"),
        ("scaffold", "its clients' state ended with it"),
    ):
        new = write_app(tmp_path / kind, digits(clients=3, optimizer=PLAIN, strategy={"kind": kind}), {"run-dir": ""})
        with pytest.raises(ConfigError, match=f"run-dir: .* holds a run, and {said}"):
            run_app(new, **{"run-dir": str(where)})


def test_the_app_says_how_a_run_failed(tmp_path: Path) -> None:
    config = digits(clients=3, strategy={"kind": "flower", "name": "FedAvg"}, optimizer={"kind": "sgd", "lr": 1e30})
    app = write_app(tmp_path / "app", config, {"run-dir": ""})
    broken = write_app(tmp_path / "broken", config.replace("FedAvg", "FedAvgg"), {"run-dir": ""})
    with pytest.raises(WorkerError, match="no reply has counted in 1 round; client 0 in round 1: client failed with"):
        run_app(app, **{"run-dir": str(tmp_path / "diverged")})
    assert read_run(tmp_path / "diverged").status == "failed"
    with pytest.raises((ConfigError, WorkerError), match="did you mean 'FedAvg'"):
        run_app(broken, **{"run-dir": str(tmp_path / "failed")})
    assert is_run(tmp_path / "failed")
    assert read_run(tmp_path / "failed").status == "failed"
    assert "did you mean" in str(read_run(tmp_path / "failed").record["error"])


def test_frozen_weights_of_a_first_model_are_known_to_the_clients(tmp_path: Path) -> None:
    simulated(tmp_path / "first")
    (tmp_path / "first" / "model").rename(tmp_path / "model")
    changes = {"init": str(tmp_path / "model"), "freeze": ["layers.0.*"]}
    run = parse_federate({**CONFIG, **changes}, {})
    app = write_app(tmp_path / "app", to_yaml(dump_run(run)), {"run-dir": str(tmp_path / "app-run")})
    simulate_app(app, LocalPool(), 2, {}, lambda record: None)
    ours = simulated(tmp_path / "ours", **changes)
    assert read_run(tmp_path / "app-run").summary()["weights_sha256"] == ours["weights_sha256"]
