"""Flower's own strategies over a recipe: the numbers of ours where they are the same algorithm, and clear refusals."""

import gc
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message
from flwr.serverapp.strategy import FedAvg
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from torch import Tensor

from core.config import parse_run, read_overrides
from core.errors import ConfigError, WorkerError
from core.pool import LocalPool
from core.storage.store import RunDirectory
from federated import support
from federated.federation import Federation
from federated.flower import theirs
from federated.flower.judged_record import judged_record
from federated.flower.messages import DIED
from federated.run import FederateRun
from federated.server import Watch
from federated.site import Judged, Verdict
from federated.strategies import Theirs
from hanse.console import Console
from hanse.federate import parse_federate, replay, simulate
from tests.federated.reference import served
from tests.federated.test_engines import local
from tests.federated.test_remote import FakeGrid, _identity, died  # noqa: F401 - a fixture that each test uses

CONFIG: dict[str, Any] = {
    "name": "theirs",
    "data": {"kind": "table", "path": "bundled:wine"},
    "model": {"kind": "mlp", "hidden": [8]},
    "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.0},
    "train": {"batch_size": 8},
    "clients": 8,
    "rounds": 3,
    "partition": {"kind": "dirichlet", "alpha": 1.0},
    "evaluate": {"every": 2, "held_out": 0.2},
    "backend": "loop",
}


def flowers(name: str, **arguments: Any) -> dict[str, Any]:
    return {"kind": "flower", "name": name, "arguments": arguments}


def federation(**changes: Any) -> Federation:
    return Federation.of(parse_run(FederateRun, {**CONFIG, **changes}))


class Ran:
    """What a run leaves. `grid` serves it in place of a pool."""

    def __init__(self, found: Federation, path: Path, grid: FakeGrid | None = None, stop_after: int = 99) -> None:
        self.records: list[dict[str, Any]] = []
        watch = Watch(self.records.append, lambda: len(self.split("train")) >= stop_after)
        with RunDirectory.create(path) as directory:
            if grid is None:
                self.summary = theirs.simulate(found, LocalPool(), directory, watch)
            else:
                nodes = {client: client + 2 for client in range(len(found.clients))}
                self.summary = theirs.serve(found, grid, nodes, directory, watch)
        self.weights: Tensor = found.frame.vector(found.task)

    def split(self, name: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record.get("split") == name]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record.get("event") == name]


@pytest.mark.parametrize(
    "name, arguments, ours",
    [("FedAvg", {}, {"kind": "fedavg"}), ("FedProx", {"proximal_mu": 0.5}, {"kind": "fedprox", "mu": 0.5})],
)
def test_what_is_the_same_algorithm_comes_to_the_weights_and_records_of_ours(
    tmp_path: Path, name: str, arguments: dict[str, Any], ours: dict[str, Any]
) -> None:
    ran = Ran(federation(strategy=flowers(name, **arguments)), tmp_path)
    records: list[dict[str, Any]] = []
    found = federation(strategy=ours)
    weights = served(found, local(found), Watch(records.append))
    torch.testing.assert_close(ran.weights, weights, rtol=0, atol=1e-6)
    assert float((weights - found.first).abs().max()) > 0.01
    for split in ("train", "cohort", "validation", "clients"):
        expected = [record for record in records if record.get("split") == split]
        assert [record["round"] for record in ran.split(split)] == [record["round"] for record in expected]
        assert [set(record) for record in ran.split(split)] == [set(record) for record in expected]
    for mine, other in zip(ran.split("train"), (r for r in records if r.get("split") == "train"), strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert {k: mine[k] for k in ("clients", "failed", "bytes_down")} == {
            k: other[k] for k in ("clients", "failed", "bytes_down")
        }
    assert ran.summary["evaluation"]["clients"]["spread"]["loss"]["clients"] == 8


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("FedMedian", {}),
        ("FedTrimmedAvg", {"beta": 0.25}),
        ("Krum", {"num_malicious_nodes": 1}),
        ("MultiKrum", {"num_malicious_nodes": 1, "num_nodes_to_select": 3}),
        ("Bulyan", {"num_malicious_nodes": 1}),
        ("FedAvgM", {"server_momentum": 0.9}),
        ("FedAdam", {"eta": 0.01}),
        ("FedYogi", {"eta": 0.01}),
        ("FedAdagrad", {"eta": 0.01}),
        ("QFedAvg", {"client_learning_rate": 0.1, "train_loss_key": "loss"}),
    ],
)
def test_every_strategy_of_flowers_runs_and_moves_the_model(
    tmp_path: Path, name: str, arguments: dict[str, Any]
) -> None:
    found = federation(strategy=flowers(name, **arguments))
    first = found.first.clone()
    ran = Ran(found, tmp_path)
    assert ran.summary["ended"] == "done" and ran.summary["rounds"] == 3
    assert [record["clients"] for record in ran.split("train")] == [8, 8, 8]
    assert not ran.events("quarantined")
    assert float((ran.weights - first).abs().max()) > 0.001
    assert (tmp_path / "model" / "model.safetensors").is_file()


class Drawing(FakeGrid):
    """Threads of a real grid draw from `random`, too."""

    def get_node_ids(self) -> Iterable[int]:
        random.random()
        return super().get_node_ids()


def test_another_grid_draws_the_same_clients_and_comes_to_the_same_bits(tmp_path: Path) -> None:
    changes = {"strategy": flowers("FedAvg", fraction_train=0.5, fraction_evaluate=0.5)}
    here = Ran(federation(**changes), tmp_path / "here")
    found = federation(**changes)
    there = Ran(found, tmp_path / "there", Drawing(found))
    cohorts = [record["cohort"]["client"] for record in here.split("cohort")]
    assert cohorts == [record["cohort"]["client"] for record in there.split("cohort")]
    assert (
        all(len(cohort) == 4 and cohort == sorted(cohort) for cohort in cohorts)
        and len({tuple(cohort) for cohort in cohorts}) > 1
    )
    assert torch.equal(here.weights, there.weights)


def test_a_reply_that_is_not_good_is_named_and_left_out(tmp_path: Path) -> None:
    def tamper(message: Message, reply: Message) -> list[Message]:
        metrics = reply.content["metrics"]
        if message.metadata.message_type == "train" and metrics["client"] == 3:
            metrics["extra"] = float("nan")
        if message.metadata.message_type == "train" and metrics["client"] == 4:
            return []
        return died(message, reply) if message.metadata.dst_node_id == 5 + 2 else [reply]

    found = federation(strategy=flowers("FedAvg"), rounds=1, timeout_s=0.1)
    assert isinstance(found.run.strategy, Theirs)
    ran = Ran(found, tmp_path, FakeGrid(found, tamper))
    assert {(one["client"], one["reason"]) for one in ran.events("quarantined")} == {
        (3, "metric 'extra' is nan"),
        (4, "no answer within timeout_s, 0.1 s"),
        (5, DIED),
    }
    (record,) = ran.split("train")
    assert record["clients"] == 5 and record["failed"] == 3


def test_replies_reach_the_strategy_in_the_order_of_the_models_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shuffled(message: Message, reply: Message) -> list[Message]:
        arrays = reply.content.get("arrays")
        if message.metadata.message_type == "train" and isinstance(arrays, ArrayRecord):
            reply.content["arrays"] = ArrayRecord(dict(reversed(arrays.items())))
        return [reply]

    strategy = flowers("QFedAvg", client_learning_rate=0.1, train_loss_key="loss")  # goes by places, not by names
    a, b = federation(strategy=strategy), federation(strategy=strategy)
    monkeypatch.setattr(gc, "collect", lambda: 0)  # this strategy does so for every reply
    one, other = Ran(a, tmp_path / "a", FakeGrid(a)), Ran(b, tmp_path / "b", FakeGrid(b, shuffled))
    assert torch.equal(one.weights, other.weights)


def test_a_client_that_fails_does_not_end_the_run(tmp_path: Path) -> None:
    found = federation(strategy=flowers("FedAvg"), rounds=2)

    class Breaking:
        def __getattr__(self, name: str) -> Any:
            return getattr(found.clients, name)

        def __len__(self) -> int:
            return len(found.clients)

        def data(self, client: int, seed: int) -> Any:
            if client == 5:
                raise OSError("the disk is gone")
            return found.clients.data(client, seed)

    ran = Ran(replace(found, clients=Breaking()), tmp_path)
    (first, _) = ran.events("quarantined")
    assert first["client"] == 5 and first["reason"].endswith("client 5: OSError: the disk is gone")
    assert [record["clients"] for record in ran.split("train")] == [7, 7]
    assert [one["client"] for one in ran.events("client_failed")] == [5]  # of the evaluation


def test_a_client_that_holds_nothing_out_says_nothing_of_it(tmp_path: Path) -> None:
    ran = Ran(federation(strategy=flowers("FedAvg"), evaluate={"every": 1, "held_out": 0.0}), tmp_path)
    assert ran.summary["ended"] == "done"
    assert ran.split("clients") == [] and not ran.events("client_failed")


def test_a_run_that_is_stopped_says_after_which_round(tmp_path: Path) -> None:
    ran = Ran(federation(strategy=flowers("FedAvg")), tmp_path, stop_after=2)
    assert ran.summary == {"ended": "stopped", "rounds": 2}


class Broken(FedAvg):
    """Fails in round 2."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        if server_round == 2:
            raise KeyError("the key\nis gone")
        return super().aggregate_train(server_round, replies)


class Renaming(FedAvg):
    """Gives arrays of other names."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        return ArrayRecord({f"my-{name}": array for name, array in arrays.items()}), metrics


def own(monkeypatch: pytest.MonkeyPatch, name: str) -> str:
    """The name of a class of this file, which can be imported as long as the test runs."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    return f"{__name__}:{name}"


class Diverging(FedAvg):
    """Comes to numbers that float32 does not have."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        return ArrayRecord({n: Array(np.full(a.shape, 1e300**server_round)) for n, a in arrays.items()}), metrics


def test_a_model_that_diverges_ends_the_run_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WorkerError, match="the model is not finite after round 1; lower"):
        Ran(federation(strategy=flowers(own(monkeypatch, "Diverging"))), tmp_path)


def test_a_strategy_that_raises_is_one_line_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WorkerError) as error:
        Ran(federation(strategy=flowers(own(monkeypatch, "Broken"))), tmp_path)
    assert "\n" not in str(error.value)
    assert "Broken failed at test_theirs.py:" in str(error.value) and "KeyError: 'the key" in str(error.value)
    assert "Traceback" in error.value.__notes__[0]


def test_a_strategy_that_gives_other_arrays_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WorkerError, match=r"after round 1 its arrays are not those of the model: .* is missing"):
        Ran(federation(strategy=flowers(own(monkeypatch, "Renaming"))), tmp_path)


@pytest.mark.parametrize(
    "name, arguments, said",
    [
        ("FedMedain", {}, r"strategy.name: there is no strategy 'FedMedain' .*; did you mean 'FedMedian'\?"),
        ("Strategy", {}, "strategy.name: there is no strategy 'Strategy'"),
        ("FedAvg", {"fraction_trian": 0.5}, r"arguments.fraction_trian: .* did you mean 'fraction_train'\?"),
        ("FedAvg", {"min_available_nodes": 9}, "min_available_nodes: FedAvg would wait for 9 nodes and there are 8"),
        ("FedXgbBagging", {}, "FedXgbBagging does not go with a recipe: it joins trees"),
        ("DifferentialPrivacyServerSideFixedClipping", {}, "it wraps another strategy"),
        ("no_such_package:FedAvg", {}, "no_such_package cannot be imported: ModuleNotFoundError"),
        ("flwr.serverapp:FedAvg", {}, "there is no strategy 'FedAvg' in flwr.serverapp"),
    ],
)
def test_a_strategy_that_cannot_be_is_refused_with_one_line(name: str, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        theirs.strategy_of(Theirs(name=name, arguments=arguments), 8)
    assert "\n" not in str(error.value)


def test_arguments_that_a_strategy_refuses_are_a_mistake_in_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"strategy.arguments: .*Picky cannot be made of them: ValueError: too small"):
        theirs.strategy_of(Theirs(name=own(monkeypatch, "Picky"), arguments={"fraction_train": 0.1}), 8)


class Picky(FedAvg):
    """Refuses small fractions."""

    def __init__(self, fraction_train: float) -> None:
        if fraction_train < 0.5:
            raise ValueError("too small")
        super().__init__(fraction_train)


@pytest.mark.parametrize(
    "words, said",
    [
        (["cohort=4"], "cohort: Flower's strategy decides"),
        (["evaluate.clients=4"], "evaluate.clients: Flower's strategy decides"),
        (["transforms=[{kind: int8}]"], "transforms: Flower's strategies"),
        (["devices={dropout: 0.1}"], "devices: Flower's strategies"),
        (["attack={kind: sign_flip}"], "attack: attackers change updates"),
        (["max_norm=1.0"], "max_norm: it bounds an update"),
        (["run_dir=x", "resume=true"], "resume: Flower's strategies begin at round 1"),
    ],
)
def test_what_does_not_go_with_a_strategy_of_flowers_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_federate({**CONFIG, "strategy": flowers("FedAvg")}, read_overrides(words))
    rows = [row for row in support.ROWS if row[2].startswith(said)]
    assert len(rows) == 1 and rows[0][0].startswith("a strategy of Flower's")


def test_the_command_leaves_a_whole_run_and_refuses_to_replay_it(tmp_path: Path) -> None:
    where = tmp_path / "run"
    config = {**CONFIG, "strategy": flowers("FedMedian", fraction_train=0.5), "run_dir": str(where)}
    with Console.choose(quiet=True) as console:
        path, summary = simulate(parse_federate(config, {}), console)
        wrong = {**config, "strategy": flowers("FedMedain"), "run_dir": str(tmp_path / "wrong")}
        with pytest.raises(ConfigError, match="did you mean 'FedMedian'"):
            simulate(parse_federate(wrong, {}), console)
    assert not (tmp_path / "wrong").exists()
    assert path == where and summary["ended"] == "done"
    assert (where / "report.html").is_file() and (where / "model" / "config.json").is_file()
    assert {"train", "cohort", "clients", "validation", "test"} <= {r.get("split") for r in _metrics(where)}
    with pytest.raises(ConfigError, match="no round of Flower's strategies can be replayed"):
        replay(where, 1, 0)


def _metrics(where: Path) -> list[dict[str, Any]]:
    with RunDirectory.join(where) as directory:
        return directory.run.metrics()


def test_flower_averages_what_clients_judge() -> None:
    verdicts = [Verdict(0, "shared", 10, {"loss": 1.0}), Verdict(1, "shared", 30, {"loss": 2.0})]
    records = [judged_record(Judged(verdicts=[verdict])) for verdict in verdicts]
    assert dict(aggregate_metricrecords(records, "num-examples")) == {"loss": 1.75}
