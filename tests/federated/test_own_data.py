"""Nodes that read their own files: the server never has any of them, and the numbers are those of a simulation."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Error, Message, RecordDict

from core.config import dump_run, parse_run, to_yaml
from core.data import Data, Preprocess
from core.errors import ConfigError, DataError, HanseError, WorkerError
from core.execute import digest
from core.storage.artifact import read_weights
from core.storage.store import read_run
from federated.client_app import _site
from federated.federation import Federation
from federated.flower.own_data import OwnClients, on_node, on_server
from federated.policy import Policy
from federated.run import FederateRun
from federated.server_app import app as server_app
from hanse.console import Console
from hanse.federate import parse_federate, simulate
from tests.federated import test_remote
from tests.federated.reference import served
from tests.federated.test_engines import local
from tests.federated.test_remote import RUN, FakeGrid, _identity  # noqa: F401 - a fixture that each test uses

SIZES = (80, 40, 58)
CONFIG: dict[str, Any] = {
    "name": "hospitals",
    "data": {"kind": "table", "path": "not-on-the-server.csv", "target": "label"},
    "model": {"kind": "mlp", "hidden": [8], "dropout": 0.1},
    "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.0},
    "train": {"batch_size": 8},
    "clients": 3,
    "rounds": 2,
    "backend": "loop",
    "evaluate": {"every": 1, "held_out": 0.25},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a file of each client, and a first model of a few rows of everybody's."""
    place, draws = tmp_path_factory.mktemp("place"), np.random.default_rng(0)
    rows = []
    for client, size in enumerate(SIZES):
        x = draws.normal(client, 1 + client, (size, 3)).round(3)
        own = [f"{a},{b},{c},{'no' if a + b < c else 'yes'}" for a, b, c in x.tolist()]
        (place / f"client-{client}.csv").write_text("\n".join(["a,b,c,label", *own]) + "\n")
        rows += own[:20]
    (place / "sample.csv").write_text("\n".join(["a,b,c,label", *rows]) + "\n")
    data = {"kind": "table", "path": str(place / "sample.csv"), "target": "label"}
    with Console.choose(quiet=True) as console:
        simulate(parse_federate({**CONFIG, "data": data, "rounds": 1, "run_dir": str(place / "first")}, {}), console)
    (place / "first" / "model").rename(place / "model")
    return place


def run_of(place: Path, **changes: Any) -> FederateRun:
    return parse_run(FederateRun, {**CONFIG, "init": str(place / "model"), **changes})


def node(place: Path, client: int) -> dict[str, Any]:
    files = {"data-path": str(place / f"client-{client}.csv"), "model-path": str(place / "model")}
    return {"partition-id": client, **files}


class Opened:
    """The paths that are opened or listed while it is entered. One for all tests: an audit hook cannot be removed."""

    def __init__(self) -> None:
        self.is_on, self.paths = False, list[str]()
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.is_on and event in ("open", "os.listdir", "os.scandir", "glob.glob"):
            self.paths.append(str(arguments[0]))

    def __enter__(self) -> "Opened":
        self.is_on, self.paths = True, []
        return self

    def __exit__(self, *_: object) -> None:
        self.is_on = False


@pytest.fixture(scope="module")
def opened() -> Opened:
    return Opened()


def test_a_node_has_its_own_rows_and_nobody_elses(place: Path) -> None:
    for client, size in enumerate(SIZES):
        clients = on_node(run_of(place), node(place, client), client).clients
        data = clients.data(client, 5)
        held_out = round(size * 0.25)
        assert data.sizes == {"train": size - held_out, "validation": held_out, "test": 0}
        assert clients.sizes.tolist() == [size - held_out if c == client else 0 for c in range(3)]
        parts = [data.splits[name].take(data.splits[name].addresses(0, None)) for name in ("train", "validation")]
        found = torch.cat([inputs for inputs, _ in parts])
        rows = np.loadtxt(place / f"client-{client}.csv", delimiter=",", skiprows=1, usecols=(0, 1, 2))
        fitted = Preprocess.load(place / "model").fitted
        wanted = [[(v - f.mean) / f.std for v, f in zip(row, fitted.features, strict=True)] for row in rows]
        assert torch.allclose(found.sort(0).values, torch.tensor(wanted, dtype=torch.float32).sort(0).values, atol=1e-5)
        with pytest.raises(AssertionError, match="is not here"):
            clients.data((client + 1) % 3, 5)


def test_a_nodes_policy_is_its_own_whatever_the_servers_config_says(place: Path) -> None:
    open_to_all = {"least_count": 1, "bins_share": 1.0, "tolerance": 0.0, "extremes": True, "least_sites": 1}
    for wanted in (None, open_to_all):
        own = on_node(run_of(place, statistics=wanted), node(place, 1), 1).run.statistics
        assert own == Policy()
    own = on_node(run_of(place, statistics=open_to_all), node(place, 1) | {"least-count": 30}, 1).run.statistics
    assert own is not None and own.least_count == 30
    weighted = run_of(place, data={**CONFIG["data"], "weight": "c"})
    with pytest.raises(ConfigError, match=r"data\.weight: examples with weights of their own cannot be counted"):
        on_node(weighted, node(place, 1), 1)


@pytest.fixture
def asked_by(place: Path, tmp_path: Path) -> Callable[..., Context]:
    """The context of a node with its own data, under a server whose config names other files on the node's machine."""
    secrets = tmp_path / "secrets"
    shutil.copytree(place / "model", secrets / "model")
    shutil.copy(place / "client-1.csv", secrets / "rows.csv")
    (secrets / "trace.csv").write_text("device,start,end\n0,0,100\n")

    def ask(changes: dict[str, Any], told: dict[str, Any]) -> Context:
        data = {**CONFIG["data"], "path": str(secrets / "rows.csv")}
        config = to_yaml(dump_run(run_of(place, **{"data": data, **changes}))).replace("SECRETS", str(secrets))
        return Context(RUN, 2, node(place, 0), RecordDict(), {"config": config, **told})

    return ask


NAMED: list[dict[str, Any]] = [
    {},
    {"init": "SECRETS/model", "freeze": ["layers.0.*"]},
    {"devices": {"availability": "trace", "trace": "SECRETS/trace.csv"}},
]


@pytest.mark.parametrize("changes", NAMED)
def test_a_node_with_its_own_data_never_opens_a_path_that_the_servers_config_names(
    place: Path, tmp_path: Path, opened: Opened, asked_by: Callable[..., Context], changes: dict[str, Any]
) -> None:
    context = asked_by(changes, {"own-data": True})
    with opened:
        assert _site(context).setting.clients.sizes.tolist() == [60, 0, 0]
    assert str(place / "client-0.csv") in opened.paths
    assert [path for path in opened.paths if path.startswith(str(tmp_path))] == []


@pytest.mark.parametrize("told", [{}, {"own-data": False}])
@pytest.mark.parametrize("changes", NAMED)
def test_a_node_with_its_own_data_refuses_a_run_that_asks_for_other_data(
    tmp_path: Path, opened: Opened, asked_by: Callable[..., Context], changes: dict[str, Any], told: dict[str, Any]
) -> None:
    context = asked_by(changes, told)
    with opened, pytest.raises(ConfigError, match="own-data: this node was started with data-path and reads nothing"):
        _site(context)
    assert [path for path in opened.paths if path.startswith(str(tmp_path))] == []


def test_two_nodes_with_the_same_rows_hold_out_others(place: Path) -> None:
    found = []
    for client in (0, 1):
        rows = on_node(run_of(place), node(place, 0), client).clients.data(client, 5).splits["validation"]
        found.append(rows.addresses(0, None).sort().values.tolist())
    assert found[0] != found[1]


class Everyone:
    """The three nodes' clients, as one process would have them."""

    def __init__(self, place: Path) -> None:
        run = run_of(place)
        self.own: list[OwnClients] = [on_node(run, node(place, c), c).clients for c in range(3)]  # type: ignore[misc]
        self.sizes = torch.stack([own.sizes for own in self.own]).sum(0)
        self.held_out_sizes = torch.stack([own.held_out_sizes for own in self.own]).sum(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own[0], name)

    def __len__(self) -> int:
        return 3

    def data(self, client: int, seed: int) -> Data:
        return self.own[client].data(client, seed)


Told = dict[int, dict[str, Any]]


@pytest.fixture
def serve_app(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs our two apps and gives the summary. `told`: what differs in the config of a client's node."""
    ours = test_remote.app

    def serve(where: Path, told: Told | None = None, **changes: Any) -> dict[str, Any]:
        def on_its_node(message: Message, context: Context) -> Message:
            client = int(context.node_config["partition-id"])
            context.node_config = {**node(place, client), **(told or {}).get(client, {})}
            try:
                return ours(message, context)
            except HanseError as error:  # as Flower says it
                return Message(Error(2, f"{type(error)}:<'{error}'>"), reply_to=message)

        monkeypatch.setattr(test_remote, "app", on_its_node)
        grid = FakeGrid(SimpleNamespace(run=run_of(place, **changes), clients=range(3)))
        grid.config |= {"own-data": True, "run-dir": str(where)}
        server_app(grid, Context(RUN, 1, {}, RecordDict(), grid.config))
        return read_run(where).summary()

    return serve


@pytest.mark.parametrize("strategy", [{"kind": "fedavg"}, {"kind": "scaffold"}, {"kind": "median"}])
def test_nodes_with_their_own_data_come_to_the_bits_of_a_simulation(
    place: Path, tmp_path: Path, serve_app: Callable[..., dict[str, Any]], strategy: dict[str, Any]
) -> None:
    summary = serve_app(tmp_path / "run", strategy=strategy)
    whole = Federation(run_of(place, strategy=strategy), Everyone(place), None, read_weights(place / "model"))
    whole.frame.put(whole.task, served(whole, local(whole)))
    assert summary["weights_sha256"] == digest(whole.task.network.state_dict())
    assert summary["evaluation"]["clients"]["spread"]["loss"]["clients"] == 3
    assert "validation" not in summary["evaluation"], "the server holds nothing"


def test_flowers_strategies_serve_nodes_with_their_own_data(
    place: Path, tmp_path: Path, serve_app: Callable[..., dict[str, Any]]
) -> None:
    theirs = serve_app(tmp_path / "theirs", strategy={"kind": "flower", "name": "FedAvg"})
    serve_app(tmp_path / "ours")
    one, other = read_weights(tmp_path / "theirs" / "model"), read_weights(tmp_path / "ours" / "model")
    assert theirs["rounds"] == 2 and all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def test_a_model_of_own_data_predicts_with_the_first_models_preprocessing(
    place: Path, tmp_path: Path, serve_app: Callable[..., dict[str, Any]]
) -> None:
    serve_app(tmp_path / "run")
    assert (tmp_path / "run" / "model" / "preprocess.json").read_text() == (
        place / "model" / "preprocess.json"
    ).read_text()


def test_a_node_may_have_the_first_model_in_another_place(
    place: Path, tmp_path: Path, serve_app: Callable[..., dict[str, Any]]
) -> None:
    shutil.copytree(place / "model", tmp_path / "copy")
    there = serve_app(tmp_path / "there", {1: {"model-path": str(tmp_path / "copy")}})
    assert there["weights_sha256"] == serve_app(tmp_path / "here")["weights_sha256"]
    run = run_of(place, init="not-here")
    assert on_node(run, {**node(place, 1), "model-path": str(tmp_path / "copy")}, 1).clients.spec.classes == (
        "no",
        "yes",
    )
    with pytest.raises(WorkerError, match=r"1 clients have no node, the first is client 1; one said: .*no-model"):
        serve_app(tmp_path / "no", {1: {"model-path": str(tmp_path / "no-model")}})


@pytest.mark.parametrize(
    "told, said",
    [
        ({1: {"data-path": ""}}, "ConfigError: node config: data-path is missing: start client 1's SuperNode with"),
        ({1: {"model-path": ""}}, "ConfigError: node config: model-path is missing: start client 1's SuperNode with"),
        ({2: {"data-path": "nowhere.csv"}}, "DataError: nowhere.csv: no such file"),
    ],
)
def test_a_node_without_data_says_so_to_the_server(
    tmp_path: Path, serve_app: Callable[..., dict[str, Any]], told: Told, said: str
) -> None:
    with pytest.raises(WorkerError, match=f"1 clients have no node, .*{said}"):
        serve_app(tmp_path / "run", told)
    assert read_run(tmp_path / "run").status == "failed"


def test_rows_without_labels_are_refused(place: Path, tmp_path: Path) -> None:
    bare = [line.rpartition(",")[0] for line in (place / "client-0.csv").read_text().splitlines()]
    (tmp_path / "bare.csv").write_text("\n".join(bare) + "\n")
    with pytest.raises(DataError, match=r"bare\.csv: has no targets to learn from"):
        on_node(run_of(place), {**node(place, 0), "data-path": str(tmp_path / "bare.csv")}, 0)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"init": None}, "init: nodes that read their own data need the preprocessing of a first model"),
        ({"clients": None, "partition": {"kind": "column", "column": "a"}}, "clients: write how many nodes there are"),
        ({"attack": {"kind": "sign_flip"}}, "attack: nodes that read their own data are real ones"),
        ({"data": {"kind": "image", "augment": {"flip": True}}}, "data.augment: nodes that read their own data"),
        ({"data": {"kind": "text"}, "model": {"kind": "gpt"}}, "data.kind: nodes read tables and images"),
    ],
)
def test_what_nodes_with_their_own_data_cannot_do_is_refused(place: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        on_server(run_of(place, **changes), {0: (1, 0), 1: (1, 0), 2: (1, 0)})
