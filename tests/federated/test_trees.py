"""Trees grown by clients: as good as they should be, equal in every run, and of one client those of the library."""

import io
import json
import random
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from core.config import parse
from core.data import Data, Preprocess, Spec, Table, load
from core.data.examples import Stacked
from core.data.preprocess import Number, TableFit
from core.errors import ConfigError, DataError, ResourceError, WorkerError
from core.metrics import Metrics, exact_auc
from core.pool import ProcessPool
from core.randomness import generator
from federated.clients import PartitionedClients
from federated.partition import IID, make_partition
from federated.trees.booster import Rows, outputs, predict
from federated.trees.client_app import client_app, measured
from federated.trees.config import Plan, TreesConfig
from federated.trees.server_app import Fault, Forest, server_app
from federated.trees.simulate import simulate_trees

SOURCE = Table(path="bundled:breast_cancer")


@pytest.fixture(autouse=True)
def _library() -> None:
    pytest.importorskip("xgboost", reason="the extra `trees` is not installed")


@cache
def cancer(clients: int) -> tuple[Data, ...]:
    """breast_cancer, dealt to clients that hold out a quarter of what they have."""
    data = load(SOURCE, "class")
    partitioned = PartitionedClients(data, make_partition(IID(), data, SOURCE, clients, 0), 0.25, 0)
    return tuple(partitioned.data(i, 0) for i in range(clients))


@cache
def made(target: str, clients: int, outputs: int = 1, rows: int = 120) -> tuple[Data, ...]:
    """Tables with 4 inputs, whose targets depend on two of them; real ones lie about 50."""
    spec = Spec("table", (4,), outputs, target, tuple("abcdefg"[:outputs]) if target == "class" else ())  # type: ignore[arg-type]
    fitted = TableFit(tuple(Number(name, 0.0, 1.0) for name in "wxyz"), "t")
    parts = []
    for client in range(clients):
        inputs = torch.randn(rows, 4, generator=generator("trees", client))
        value = inputs[:, 0] + inputs[:, 1].square()
        wide = torch.bucketize(value, torch.tensor([0.3, 1.2])) if target == "class" else (50 + value)[:, None]
        cut = rows * 3 // 4
        splits = {"train": Stacked(inputs[:cut], wide[:cut]), "validation": Stacked(inputs[cut:], wide[cut:])}
        parts.append(Data(Preprocess(spec, fitted), "", splits))
    return tuple(parts)


def trees_of(model: bytes) -> list[Any]:
    return list(json.loads(model)["learner"]["gradient_booster"]["model"]["trees"])


class PlainGrid(Grid):
    """Any other grid: it calls the app in this process. `spoil(message, reply)` may replace a reply."""

    def __init__(
        self, app: ClientApp, clients: int, spoil: Callable[[Message, Message], Message] | None = None
    ) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.app, self.clients, self.spoil = app, clients, spoil

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any:
        return None

    def create_message(self, *arguments: Any) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Any) -> Any:
        raise NotImplementedError

    def pull_messages(self, message_ids: Any) -> Any:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(range(2, self.clients + 2))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return [self.answer(message) for message in messages]

    def answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        place: dict[str, Any] = {"partition-id": node - 2, "num-partitions": self.clients}
        try:
            reply = self.app(message, Context(1, node, place, RecordDict(), {}))
        except ValueError as error:
            reply = Message(Error(2, str(error)), reply_to=message)
        return self.spoil(message, reply) if self.spoil else reply


def on_plain_grid(
    config: TreesConfig, clients: tuple[Data, ...], spoil: Callable[[Message, Message], Message] | None = None
) -> Forest:
    grid, found = PlainGrid(client_app(lambda number: clients[number]), len(clients), spoil), list[Forest]()
    app = server_app(config, clients[0].spec, len(clients), found.append, clients[0].unit)
    app(grid, Context(1, 1, {}, RecordDict(), {}))
    return found[0]


# --- what they learn -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["bagging", "cyclic"])
def test_five_clients_learn_to_tell_cancer(mode: Any) -> None:
    clients = cancer(5)
    forest = simulate_trees(TreesConfig(mode=mode, rounds=10, max_depth=3), clients)
    assert len(forest.rounds) == 10 and not forest.faults
    assert forest.rounds[-1]["roc_auc"] > 0.97
    assert forest.rounds[-1]["loss"] < forest.rounds[0]["loss"]
    assert len(trees_of(forest.model)) == (50 if mode == "bagging" else 10)


@pytest.mark.parametrize("mode", ["bagging", "cyclic"])
def test_the_metrics_of_a_round_are_those_of_all_held_out_rows_together(mode: Any) -> None:
    clients = cancer(5)
    forest = simulate_trees(TreesConfig(mode=mode, rounds=2), clients)
    plan = Plan.of(TreesConfig(), clients[0].spec, 5)
    parts = [Rows.of(data, "validation", plan) for data in clients]
    union = Rows(*(torch.cat([getattr(part, name) for part in parts]) for name in ("inputs", "targets", "weight")))
    expected = Metrics.of("class", 2).compute(measured(forest.model, union, plan))
    assert forest.rounds[-1] == pytest.approx(expected, rel=1e-12)
    probability = predict(forest.model, union.inputs)[:, 1]
    assert forest.rounds[-1]["roc_auc"] == pytest.approx(exact_auc(probability, union.targets), abs=0.002)
    means = [Metrics.of("class", 2).compute(measured(forest.model, part, plan))["f1_macro"] for part in parts]
    assert forest.rounds[-1]["f1_macro"] != pytest.approx(np.mean(means), abs=1e-4)


@pytest.mark.parametrize("mode", ["bagging", "cyclic"])
def test_two_runs_and_two_grids_give_equal_bytes_whatever_the_global_generator(mode: Any) -> None:
    config, clients = TreesConfig(mode=mode, rounds=4, subsample=0.6, local_trees=2, seed=5), cancer(5)
    runs = []
    for seed, grow in enumerate([simulate_trees, on_plain_grid, on_plain_grid]):
        random.seed(seed)  # Flower samples nodes with it
        runs.append(grow(config, clients))
    assert runs[0] == runs[1] == runs[2]
    assert runs[0].model != on_plain_grid(replace(config, seed=6), clients).model


def test_clients_with_equal_rows_draw_different_ones_for_their_trees() -> None:
    (client,) = made("real", 1)
    first, second = trees_of(simulate_trees(TreesConfig(rounds=1, subsample=0.5), (client, client)).model)
    assert first["split_conditions"] != second["split_conditions"]


@pytest.mark.slow
def test_workers_in_other_processes_grow_the_same_forest() -> None:
    config = TreesConfig(rounds=3, subsample=0.6)
    with ProcessPool(2, cpus_per_worker=0.5) as workers:
        assert simulate_trees(config, cancer(5), workers) == simulate_trees(config, cancer(5))


# --- against the library ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["bagging", "cyclic"])
@pytest.mark.parametrize("local_trees", [1, 3])
@pytest.mark.parametrize("target, outputs, objective", [
    ("class", 2, {"objective": "binary:logistic", "base_score": 0.5}),
    ("class", 3, {"objective": "multi:softprob", "num_class": 3, "base_score": 0.5}),
    ("real", 1, {"objective": "reg:squarederror"}),
])  # fmt: skip
def test_one_client_grows_the_trees_of_the_library(
    mode: Any, local_trees: int, target: str, outputs: int, objective: dict[str, Any]
) -> None:
    import xgboost

    clients = cancer(1) if outputs == 2 else made(target, 1, outputs)
    config = TreesConfig(mode=mode, rounds=4, local_trees=local_trees, eta=0.4, max_depth=3, l2=0.5)
    forest = simulate_trees(config, clients)
    rows = Rows.of(clients[0], "train", Plan.of(config, clients[0].spec, 1))
    matrix = xgboost.DMatrix(rows.inputs.numpy(), label=rows.targets.numpy())
    if target == "real":  # the mean of the targets
        objective = objective | {"base_score": rows.targets.double().mean().item()}
    parameters = {**objective, "eta": 0.4, "max_depth": 3, "reg_lambda": 0.5, "tree_method": "hist", "nthread": 1}
    plain = xgboost.train(parameters, matrix, num_boost_round=4 * local_trees)
    assert json.loads(forest.model) == json.loads(bytes(plain.save_raw("json")))
    expected = torch.from_numpy(plain.predict(matrix))
    found = predict(forest.model, rows.inputs)
    torch.testing.assert_close(found if outputs == 3 else found[:, -1], expected, rtol=1e-6, atol=1e-6)


def test_a_round_of_bagging_moves_by_the_mean_of_what_each_client_would_do() -> None:
    """outputs(together) - start = mean of (outputs(alone) - start), with trees that a client grows after each other."""
    config = TreesConfig(rounds=1, local_trees=3)
    clients = made("class", 4, 3)
    inputs = clients[0].splits["train"].inputs  # type: ignore[attr-defined]
    together = outputs(simulate_trees(config, clients).model, inputs)
    alone = [outputs(simulate_trees(config, (client,)).model, inputs) for client in clients]
    torch.testing.assert_close(together - 0.5, torch.stack(alone).mean(0) - 0.5, rtol=1e-4, atol=1e-5)


def test_real_targets_start_at_the_mean_of_all_and_are_measured_in_their_unit() -> None:
    clients = made("real", 3)
    forest = simulate_trees(TreesConfig(rounds=8), clients)
    targets = torch.cat([c.splits["train"].targets for c in clients])  # type: ignore[attr-defined]
    start = float(json.loads(forest.model)["learner"]["learner_model_param"]["base_score"].strip("[]"))
    assert start == pytest.approx(targets.double().mean().item(), rel=1e-6)
    assert forest.rounds[-1]["r2"] > 0.8
    scaled = TableFit(tuple(Number(name, 0.0, 1.0) for name in "wxyz"), "t", 0.0, 10.0)
    in_tens = tuple(replace(c, preprocess=Preprocess(c.spec, scaled)) for c in clients)
    other = simulate_trees(TreesConfig(rounds=8), in_tens)
    assert other.rounds[-1]["rmse"] == pytest.approx(10 * forest.rounds[-1]["rmse"])


def test_example_weights_count_as_in_the_library() -> None:
    import xgboost

    (client,) = made("real", 1)
    whole: Any = client.splits["train"]
    weight = torch.rand(len(whole), generator=generator("weights"))
    weighted = replace(client, splits={**client.splits, "train": replace(whole, weight=weight)})
    forest = simulate_trees(TreesConfig(rounds=3), (weighted,))
    targets = whole.targets[:, 0]
    start = ((weight.double() @ targets.double()) / weight.double().sum()).item()
    parameters = {"objective": "reg:squarederror", "base_score": start, "tree_method": "hist", "nthread": 1}
    matrix = xgboost.DMatrix(whole.inputs.numpy(), label=targets.numpy(), weight=weight.numpy())
    plain = xgboost.train(parameters, matrix, num_boost_round=3)
    assert json.loads(forest.model) == json.loads(bytes(plain.save_raw("json")))


# --- clients that fail -----------------------------------------------------------------------------------------------


def with_model(reply: Message, model: bytes) -> Message:
    reply.content["arrays"] = ArrayRecord([np.frombuffer(model, np.uint8)])
    return reply


def changed(reply: Message, change: Callable[[Any, Any], Any]) -> Message:
    """The reply after `change(learner, first tree)` of its model."""
    content = json.loads(reply.content["arrays"]["0"].numpy().tobytes())
    change(content["learner"], content["learner"]["gradient_booster"]["model"]["trees"][0])
    return with_model(reply, json.dumps(content).encode())


def too_large(reply: Message) -> Message:
    """An array whose header claims 80 TB."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (80 * 10**12,)})
    reply.content["arrays"] = ArrayRecord({"0": Array("uint8", (80 * 10**12,), "numpy.ndarray", header.getvalue())})
    return reply


def says(reply: Message, examples: int) -> Message:
    reply.content["metrics"]["num-examples"] = examples
    return reply


def without(reply: Message, name: str) -> Message:
    del reply.content[name]
    return reply


def put(place: str, key: Any, value: Any) -> Callable[[Any, Any], None]:
    """Changes the first tree."""
    return lambda learner, tree: tree[place].__setitem__(key, value)


def start_elsewhere(learner: Any, tree: Any) -> None:
    learner["learner_model_param"]["base_score"] = "[9E-1]"


def claim_nine(learner: Any, tree: Any) -> None:
    learner["gradient_booster"]["model"]["gbtree_model_param"]["num_parallel_tree"] = "9"


SPOILED: dict[str, tuple[Callable[[Message], Message], str]] = {
    "no arrays": (lambda reply: without(reply, "arrays"), "holds no model"),
    "no metrics": (lambda reply: without(reply, "metrics"), "holds no model"),
    "too large": (too_large, "holds no model"),
    "no JSON": (lambda reply: with_model(reply, b"\x00\x01"), "is not a model of trees in JSON"),
    "deep": (lambda reply: with_model(reply, b"[" * 100_000), "is not a model of trees in JSON"),
    "other JSON": (lambda reply: with_model(reply, b'{"learner": [1]}'), "is not a model of trees in JSON"),
    "start": (lambda reply: changed(reply, start_elsewhere), "is not a model for these inputs and targets"),
    "count": (lambda reply: changed(reply, claim_nine), "holds 1 trees and says (1, 9), expected 1 and (1, 1)"),
    "NaN": (lambda reply: changed(reply, put("split_conditions", -1, float("nan"))), "holds a broken tree, number 0"),
    "cycle": (lambda reply: changed(reply, put("left_children", 0, 0)), "holds a broken tree, number 0"),
    "input": (lambda reply: changed(reply, put("split_indices", 0, 99)), "holds a broken tree, number 0"),
    "rows": (lambda reply: says(reply, 2**63), "says that it has 9223372036854775808 examples"),
    "rows below 0": (lambda reply: says(reply, -1), "says that it has -1 examples"),
    "text": (lambda reply: changed(reply, put("sum_hessian", 0, "x")), "is not a model that the library reads"),
}


@pytest.mark.parametrize("name", ["error", *SPOILED])
def test_a_client_that_sends_no_trees_is_named_and_the_others_go_on(name: str) -> None:
    spoil, text = SPOILED.get(name, (None, "out of memory"))

    def second(message: Message, reply: Message) -> Message:
        if message.metadata.message_type != "train" or message.metadata.dst_node_id != 3:
            return reply
        return spoil(reply) if spoil else Message(Error(2, "out of memory"), reply_to=message)

    forest = on_plain_grid(TreesConfig(rounds=2), cancer(5), second)
    assert forest.faults == (Fault(1, 3, text), Fault(2, 3, text))
    assert len(trees_of(forest.model)) == 8
    assert forest.rounds[-1]["roc_auc"] > 0.9


def test_a_turn_that_fails_leaves_the_model_to_the_next() -> None:
    def second(message: Message, reply: Message) -> Message:
        is_second = message.metadata.message_type == "train" and message.metadata.dst_node_id == 3
        return Message(Error(2, "gone"), reply_to=message) if is_second else reply

    forest = on_plain_grid(TreesConfig(mode="cyclic", rounds=4), cancer(5), second)
    assert [(f.round, f.text) for f in forest.faults] == [(2, "gone")]
    assert len(trees_of(forest.model)) == 3


def no_metrics(reply: Message) -> None:
    reply.content["metrics"] = MetricRecord({"loss": 0.0, "confusion": [1.0]})


def below_0(reply: Message) -> None:
    record = reply.content["metrics"]
    record["confusion"] = [record["confusion"][0] - 500, record["confusion"][1] + 500, *record["confusion"][2:]]


@pytest.mark.parametrize("spoil, text", [(no_metrics, "holds no metrics"), (below_0, "confusion is below 0: -4")])
def test_metrics_that_are_none_are_left_out(spoil: Callable[[Message], None], text: str) -> None:
    def second(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "evaluate" and message.metadata.dst_node_id == 3:
            spoil(reply)
        return reply

    forest = on_plain_grid(TreesConfig(rounds=1), cancer(5), second)
    assert len(forest.faults) == 1 and forest.faults[0].text.startswith(text)
    assert forest.rounds[0]["roc_auc"] > 0.9


def test_a_client_that_does_not_say_how_many_rows_it_has_stops_the_run_before_it_begins() -> None:
    def second(message: Message, reply: Message) -> Message:
        if message.metadata.message_type == "query" and message.metadata.dst_node_id == 3:
            reply.content["metrics"]["weight"] = float("nan")
        return reply

    with pytest.raises(WorkerError, match="node 3 does not say how many rows it has"):
        on_plain_grid(TreesConfig(rounds=1), cancer(5), second)


def test_a_run_in_which_nobody_trains_ends_with_the_first_reason() -> None:
    def fail(message: Message, reply: Message) -> Message:
        return Message(Error(2, "gone"), reply_to=message) if message.metadata.message_type == "train" else reply

    with pytest.raises(WorkerError, match="no client ever trained; the first to fail was node 2: gone"):
        on_plain_grid(TreesConfig(rounds=1), cancer(5), fail)


def test_a_client_without_rows_or_with_other_data_stops_the_run_before_it_begins() -> None:
    a, b = cancer(5)[:2]
    nobody = replace(b, splits={"train": Stacked(torch.zeros(0, 30), torch.zeros(0).long())})
    with pytest.raises(WorkerError, match=r"node 3 is not ready: .*no row to train on"):
        simulate_trees(TreesConfig(), (a, nobody))
    with pytest.raises(WorkerError, match="this client has real targets of 1 outputs and 4 inputs"):
        simulate_trees(TreesConfig(), (a, *made("real", 1)))
    with pytest.raises(ResourceError, match="1 of 2 clients are online"):
        server_app(TreesConfig(), a.spec, 2, print)(
            PlainGrid(client_app(lambda number: a), 1), Context(1, 1, {}, RecordDict(), {})
        )


def test_clients_that_hold_nothing_out_give_no_metrics() -> None:
    (client,) = made("real", 1)
    empty: Any = Stacked(torch.zeros(0, 4), torch.zeros(0, 1))
    forest = simulate_trees(TreesConfig(rounds=2), (replace(client, splits=client.splits | {"validation": empty}),))  # type: ignore[operator]
    assert forest.rounds == ({}, {}) and not forest.faults


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_missing_library_is_one_line_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(ConfigError, match=r"^trees: need the library xgboost; run: pip install 'hanse\[trees\]'$"):
        simulate_trees(TreesConfig(), cancer(5))


def test_data_that_trees_do_not_take_is_refused() -> None:
    text = Spec("text", (8,), 256, "token")
    with pytest.raises(ConfigError, match="not on text"):
        Plan.of(TreesConfig(), text, 2)
    with pytest.raises(ConfigError, match="2 targets"):
        Plan.of(TreesConfig(), Spec("table", (8,), 2, "real"), 2)
    with pytest.raises(ConfigError, match="there is no client"):
        simulate_trees(TreesConfig(), ())
    forest = simulate_trees(TreesConfig(rounds=1), made("real", 1))
    with pytest.raises(DataError, match="takes 4 inputs, got 5"):
        predict(forest.model, torch.zeros(1, 5))


@pytest.mark.parametrize("field, value", [
    ("rounds", 0), ("local_trees", 0), ("max_depth", 0), ("eta", 0.0), ("eta", 1.5), ("subsample", 0.0), ("l2", -1.0),
])  # fmt: skip
def test_numbers_out_of_range_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^trees\.{field}: must"):
        parse(TreesConfig, {"kind": "trees", field: value}, "trees")


def test_a_plan_travels_flat_and_comes_back() -> None:
    plan = Plan.of(TreesConfig(mode="cyclic", eta=0.1, seed=2**40), Spec("table", (3,), 4, "class"), 7)
    assert all(isinstance(value, str | int | float) for value in plan.flat().values())
    assert Plan.read({**plan.flat(), "server-round": 3}) == plan
