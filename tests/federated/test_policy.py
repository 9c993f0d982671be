"""A site gives no single row away: not in statistics, however often it is asked, not in evaluations, not in trees."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.config import parse_run
from core.data import Data, Table, load
from core.errors import ConfigError, DataError, WorkerError
from core.metrics import Metrics, State
from federated import support
from federated.flower.messages import ARRAYS
from federated.judging import judge
from federated.keeping import Keeping
from federated.policy import Policy
from federated.run import FederateRun
from federated.server import Order
from federated.statistics import Request, Statistics, asking, local, quantiles, summarize
from federated.trees.booster import Rows, grow
from federated.trees.config import Plan, TreesConfig
from federated.trees.simulate import simulate_trees
from tests.federated.test_barren import CONFIG, federation
from tests.federated.test_remote import _identity, engine  # noqa: F401 - a fixture of the fake grid
from tests.federated.test_statistics import cut, single, table

POLICY = Policy()
K = POLICY.least_count
SEEDS = st.integers(0, 2**32 - 1)
KINDS = st.sampled_from(["normal", "long tail", "whole numbers", "far from 0"])


def distinct(kind: str, rows: int, seed: int) -> list[float]:
    """Values of rows of which no two are equal."""
    draws = np.random.default_rng(seed)
    values = {
        "normal": draws.normal(size=rows),
        "long tail": draws.lognormal(0, 4, size=rows),
        "whole numbers": draws.permutation(3 * rows + 1)[:rows].astype(float),
        "far from 0": 1e7 + draws.normal(size=rows),
    }[kind]
    assert len(set(values.tolist())) == rows
    return [float(value) for value in values]


@st.composite
def sites(draw: st.DrawFn) -> list[list[float]]:
    """The rows of some sites, of which some have few."""
    sizes = draw(st.lists(st.sampled_from([0, 1, 9, 10, 11, 19, 25, 80]), min_size=3, max_size=6))
    rows = distinct(draw(KINDS), sum(sizes), draw(SEEDS))
    return [rows[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))]


# --- statistics ----------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(sites(), st.lists(st.floats(0, 1), min_size=1, max_size=4), SEEDS)
def test_no_statistic_holds_the_value_of_a_row_nor_a_cell_of_few_rows(
    parts: list[list[float]], wanted: list[float], seed: int
) -> None:
    values, clients = {value for part in parts for value in part}, [single(part) for part in parts]
    telling = [part for part in parts if len(part) >= K]
    edges = torch.tensor(np.sort(np.random.default_rng(seed).choice([*values, 0.5, 0.7, 0.9, 1e9], 4, replace=False)))
    request = Request(("x",), edges=edges, sites=len(parts))
    for client, part in zip(clients, parts, strict=True):
        state = local(client, request, POLICY)
        assert state["low"].isnan().all() and state["high"].isnan().all()
        assert all(cell == 0 or cell >= K for cell in state["histogram"].flatten().tolist())
        assert state["count"].item() == (len(part) if len(part) >= K else 0)
    if len(telling) < POLICY.least_sites:
        with pytest.raises(DataError, match=r"a sum is of 3 or more|no client has a row"):
            summarize(clients, POLICY, request)
        return
    found = summarize(clients, POLICY, request)
    answers = quantiles(asking(clients, "x", POLICY), wanted, -1e300, 1e300)
    moments = [value for name, value in found.of("x").items() if name != "count"]
    is_whole = all(value.is_integer() for value in values)  # the mean of whole numbers may be one of them
    assert not values & {*answers, *([] if is_whole else moments)}


@settings(max_examples=60)
@given(KINDS, st.integers(K, 90), SEEDS)
def test_however_often_a_site_is_asked_its_answers_differ_by_no_row_or_by_many(kind: str, rows: int, seed: int) -> None:
    values = distinct(kind, rows, seed)
    ask = asking([single(values)], "x", replace(POLICY, least_sites=1))
    near = [value + step for value in values for step in (-1e-9, 0, 1e-9)]
    below = {0, rows} | {int(ask(torch.tensor([edge], dtype=torch.float64))[0]) for edge in near}
    assert all(step >= K for step in np.diff(sorted(below)))


def test_quantiles_are_as_exact_as_the_tolerance_says() -> None:
    values = np.random.default_rng(0).normal(50, 10, size=4000)
    clients, wanted = [single(part.tolist()) for part in np.array_split(values, 4)], [0.05, 0.25, 0.5, 0.75, 0.95]
    found = quantiles(asking(clients, "x", POLICY), wanted, -1e300, 1e300)
    assert np.abs(np.array(found) - np.quantile(values, wanted)).max() < POLICY.tolerance * 10


def test_an_outlier_is_not_told_by_the_group_that_it_is_in() -> None:
    told = POLICY.coarse(torch.tensor([*range(19), 1e6], dtype=torch.float64))
    assert float(told.max()) < 1e5 and len(told.unique()) <= 2


def test_bins_share_bounds_how_many_groups_a_site_tells_apart() -> None:
    values = torch.arange(200.0, dtype=torch.float64)
    assert len(Policy(bins_share=0.02, tolerance=0.01).coarse(values).unique()) <= 4


@settings(max_examples=60)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=8))
def test_rare_classes_are_withheld_and_do_not_follow_from_the_sum(counts: list[int]) -> None:
    kept = POLICY.cells(torch.tensor(counts, dtype=torch.float64)).tolist()
    assert all(cell in (0, count) for cell, count in zip(kept, counts, strict=True))
    assert all(cell == 0 or cell >= K for cell in kept)
    left = sum(counts) - sum(kept)
    assert left == 0 or left >= K or not sum(kept)


def labeled(*counts: int) -> Data:
    targets = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    inputs = torch.randn(sum(counts), 4, generator=torch.Generator().manual_seed(sum(counts)))
    return table(inputs, targets, tuple("abc"[: len(counts)]))


def test_what_was_withheld_is_said() -> None:
    found: Statistics = summarize(
        [labeled(30, 20, 3), labeled(30, 15, 15), labeled(40, 20, 20), labeled(2, 2, 2)], POLICY
    )
    assert found.labels == {"a": 100, "b": 35, "c": 35}
    assert found.withheld == (
        "all of 1 site with too few rows", "the least and the largest values", "the labels of 23 rows",
    )  # fmt: skip


def test_sites_tell_nothing_where_too_few_are_asked() -> None:
    with pytest.raises(DataError, match=r"0 of 2 sites tell of their rows, and a sum is of 3 or more"):
        summarize(cut(labeled(60, 60), 2), POLICY)
    state = local(labeled(60, 60), Request(("age",), sites=2), POLICY)
    assert state["sum"].item() == state["m2"].item() == 0


# --- evaluations ---------------------------------------------------------------------------------------------------


def judged_rows(classes: int, rows: int, seed: int) -> tuple[Metrics, State]:
    metrics, generator = Metrics.of("class", classes), torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (rows,), generator=generator)
    outputs = torch.randn(rows, classes, generator=generator) + torch.nn.functional.one_hot(targets, classes)
    state, ones = metrics.zero(), torch.ones(rows)
    losses = torch.nn.functional.cross_entropy(outputs, targets, reduction="none")
    metrics.add(state, outputs, {"inputs": outputs, "targets": targets, "weight": ones}, losses, ones)
    return metrics, state


@settings(max_examples=60)
@given(st.integers(2, 4), st.integers(K, 70), SEEDS)
def test_an_evaluation_tells_classes_and_scores_in_blocks_that_agree(classes: int, rows: int, seed: int) -> None:
    metrics, state = judged_rows(classes, rows, seed)
    told = POLICY.judged(metrics, state, seed)
    assert metrics.fault(told) is None and told["weight"] == rows // K * K
    for name in ("confusion", "scores"):
        assert not (told[name] % K).any()
    assert metrics.compute(told)["loss"] == pytest.approx(metrics.compute(state)["loss"])


def test_what_blocks_hide_is_right_on_the_mean_over_sites() -> None:
    metrics, state = judged_rows(3, 47, 0)
    together = metrics.zero()
    for site in range(2000):
        together = Metrics.merge(together, POLICY.judged(metrics, state, site))
    wanted, found = metrics.compute(state), metrics.compute(together)
    for name in ("accuracy", "f1_macro", "roc_auc"):
        assert found[name] == pytest.approx(wanted[name], abs=0.01), name


def test_the_states_that_clients_send_are_told_by_their_policy_and_small_ones_are_withheld() -> None:
    sizes = {"partition": {"kind": "quantity", "alpha": 0.5}, "evaluate": {"every": 0, "held_out": 0.4}}
    found, sent = federation(statistics={"least_count": 5}, seed=1, **sizes), list[dict[str, Tensor]]()

    def look(message: Message, reply: Message) -> list[Message]:
        if message.metadata.message_type == "evaluate":
            sent.append(reply.content[ARRAYS].to_torch_state_dict())
        return [reply]

    records = list[dict[str, Any]]()
    result = judge(found, engine(found, look), Order(1, found.first), Keeping(), records.append)
    held_out = found.clients.held_out_sizes.tolist()
    few = [client for client, rows in enumerate(held_out) if 0 < rows < 5]
    assert few and [record["clients"] for record in records if record.get("event") == "withheld"] == [few]
    assert result["clients"]["spread"]["loss"]["clients"] == sum(rows >= 5 for rows in held_out)
    for state in sent:
        assert not any((tensor % 5).any() for name, tensor in state.items() if not name.endswith("loss"))


def test_examples_with_weights_are_refused_for_their_rows_cannot_be_counted() -> None:
    data = {"kind": "table", "path": "x.csv", "weight": "w"}
    with pytest.raises(ConfigError, match=r"data\.weight: examples with weights of their own cannot be counted"):
        support.check(parse_run(FederateRun, {**CONFIG, "data": data, "statistics": {}}))


# --- trees ---------------------------------------------------------------------------------------------------------


def trees_of(model: bytes) -> list[dict[str, Any]]:
    trees: list[dict[str, Any]] = json.loads(model)["learner"]["gradient_booster"]["model"]["trees"]
    return trees


def leaf_sizes(tree: dict[str, Any], inputs: np.ndarray) -> dict[int, int]:
    """How many rows come to each leaf."""
    sizes: dict[int, int] = {}
    for row in inputs:
        node = 0
        while tree["left_children"][node] != -1:
            is_left = row[tree["split_indices"][node]] < np.float32(tree["split_conditions"][node])
            node = tree["left_children" if is_left else "right_children"][node]
        sizes[node] = sizes.get(node, 0) + 1
    return sizes


def rows_of(target: str, rows: int, seed: int, classes: int = 2) -> Rows:
    draws = np.random.default_rng(seed)
    inputs = np.stack([distinct(kind, rows, seed) for kind in ("normal", "long tail", "whole numbers")], 1)
    inputs = (inputs / inputs.std(0)).astype(np.float32)
    scores = inputs[:, 0] + 0.3 * draws.normal(size=rows)
    targets = scores if target == "real" else np.digitize(scores, [-0.5, 0.5][: classes - 1])
    return Rows(torch.from_numpy(inputs), torch.tensor(targets), torch.ones(rows))


@settings(max_examples=15)
@given(st.sampled_from([("real", 1), ("class", 2), ("class", 3)]), st.integers(K, 120), SEEDS)
def test_no_threshold_of_a_tree_is_the_value_of_a_row_and_no_leaf_has_few_rows(
    target: tuple[str, int], rows: int, seed: int
) -> None:
    own = rows_of(target[0], rows, seed, target[1])
    plan = Plan(TreesConfig(local_trees=2, eta=1.0, l2=0.0), target[0], 3, target[1], 3)
    from federated.trees.booster import empty

    model, values = grow(empty(plan), own.under(POLICY), plan, 0), own.inputs.numpy()
    for tree in trees_of(model):
        assert all(size >= K for size in leaf_sizes(tree, values).values())
        for node, child in enumerate(tree["left_children"]):
            if child != -1:
                assert np.float32(tree["split_conditions"][node]) not in values[:, tree["split_indices"][node]]


def test_trees_of_sites_with_a_policy_learn_and_say_what_is_withheld() -> None:
    clients = cut(load(Table(path="bundled:breast_cancer"), "class"), 4)
    parts = [replace(data, splits={**data.splits, "validation": data.splits["train"]}) for data in clients]
    few = replace(parts[0], splits={**parts[0].splits, "validation": cut(clients[0], 30)[0].splits["train"]})
    records = list[dict[str, Any]]()
    forest = simulate_trees(TreesConfig(rounds=3), [*parts[1:], few], report=records.append, policy=POLICY)
    assert not forest.faults and forest.rounds[-1]["roc_auc"] > 0.95
    assert {tuple(record["clients"]) for record in records if record.get("event") == "withheld"} == {(3,)}


def test_a_site_with_too_few_rows_or_among_too_few_grows_no_tree() -> None:
    clients = cut(load(Table(path="bundled:breast_cancer"), "class"), 3)
    with pytest.raises(WorkerError, match=r"this site has 5 rows, and sends nothing about fewer than 10"):
        simulate_trees(TreesConfig(rounds=1), [*clients, cut(clients[0], 35)[0]], policy=POLICY)
    with pytest.raises(WorkerError, match=r"statistics\.least_sites: 2 sites take part"):
        simulate_trees(TreesConfig(rounds=1), clients[:2], policy=POLICY)


# --- whose policy it is --------------------------------------------------------------------------------------------


def test_a_server_can_ask_for_a_stricter_policy_and_never_for_a_looser_one() -> None:
    site = Policy.of_node({"partition-id": 3, "least-count": 20, "extremes": False, "tolerance": 1})
    assert site == Policy(least_count=20, tolerance=1.0)
    loose = Policy(least_count=1, bins_share=1.0, tolerance=0.0, extremes=True, least_sites=1)
    assert site.stricter(loose) == site.stricter(None) == site
    assert site.stricter(Policy(least_count=50)).least_count == 50


@pytest.mark.parametrize(
    "config, said",
    [
        ({"least-count": "many"}, "least-count is 'many', expected a value such as 10"),
        ({"least-count": True}, "least-count is True"),
        ({"least-count": 0}, "least_count must be at least 1"),
        ({"bins-share": 0.0}, "bins_share must be above 0"),
        ({"tolerance": 0}, "tolerance must be above 0"),
    ],
)
def test_a_site_whose_policy_cannot_be_is_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"node config: {said}"):
        Policy.of_node(config)
