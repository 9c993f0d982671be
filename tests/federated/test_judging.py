"""Federated evaluation: the metrics of the union of what clients hold out, and how differently clients fare."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score

from core.metrics import exact_auc, log_odds
from core.population.cohort import Cohort, Job
from core.randomness import seed_of
from federated.exchange import Order
from federated.federation import Federation
from federated.judging import judge, metrics_for, spread_of
from federated.keeping import Keeping
from federated.server import Server
from federated.site import Verdict, training_only
from tests.federated.test_engines import federation, local


def judged(found: Federation, weights: torch.Tensor | None = None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    records: list[dict[str, Any]] = []
    order = Order(1, found.first if weights is None else weights)
    return judge(found, local(found), order, Keeping(), records.append), records


def union(found: Federation, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of all that clients hold out."""
    task = found.run.recipe.build(found.clients.spec).eval()
    found.frame.put(task, weights)
    logits, labels = [], []
    for client in range(len(found.clients)):
        held_out = found.clients.data(client, 0).splits["validation"]
        if len(held_out):
            inputs, targets = held_out.take(held_out.addresses(0, None))
            assert targets is not None
            with torch.no_grad():
                logits.append(task.network(inputs))
            labels.append(targets)
    return torch.cat(logits), torch.cat(labels)


def test_federated_metrics_are_those_of_the_union_of_the_clients() -> None:
    found = federation(rounds=2, evaluate={"every": 0, "held_out": 0.3})
    weights = Server(found, local(found)).serve().weights
    result, _ = judged(found, weights)
    metrics = result["clients"]["metrics"]
    logits, labels = union(found, weights)
    guesses = logits.argmax(1).numpy()
    assert metrics["accuracy"] == pytest.approx(float((guesses == labels.numpy()).mean()), abs=1e-9)
    assert metrics["f1_macro"] == pytest.approx(f1_score(labels.numpy(), guesses, average="macro"), abs=1e-9)
    each = [exact_auc(log_odds(logits)[:, c], labels == c) for c in range(10)]
    assert metrics["roc_auc"] == pytest.approx(float(np.mean(each)), abs=1e-4)  # from histograms, which add
    central, ones = metrics_for(found), torch.ones(len(labels))
    state = central.zero()
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    central.add(state, logits, {"weight": ones, "targets": labels}, losses, ones)
    for name, value in central.compute(state).items():
        assert metrics[name] == pytest.approx(value, abs=1e-6 if name == "loss" else 1e-9), name


def test_a_federated_auc_is_exact_where_scores_are_apart() -> None:
    data = {"kind": "table", "path": "bundled:breast_cancer"}
    found = federation(data=data, rounds=2, evaluate={"every": 0, "held_out": 0.3}, partition={"kind": "iid"})
    weights = Server(found, local(found)).serve().weights
    result, _ = judged(found, weights)
    logits, labels = union(found, weights)
    wanted = roc_auc_score(labels.numpy(), (logits[:, 1] - logits[:, 0]).double().numpy())
    assert result["clients"]["metrics"]["roc_auc"] == pytest.approx(wanted, abs=1e-4)


def test_the_spread_is_over_clients_and_names_the_worst() -> None:
    values = [0.5, 0.9, 0.7, 0.1]
    verdicts = [Verdict(i, "shared", 10, {"accuracy": v, "loss": 1 - v}) for i, v in enumerate(values)]
    spread = spread_of(verdicts)
    assert spread["accuracy"]["worst"] == 0.1 and spread["accuracy"]["worst_client"] == 3
    assert spread["loss"]["worst"] == pytest.approx(0.9) and spread["loss"]["worst_client"] == 3
    assert spread["accuracy"]["mean"] == pytest.approx(0.55) and spread["accuracy"]["clients"] == 4
    assert spread["accuracy"]["q50"] == pytest.approx(np.quantile(values, 0.5))
    assert spread["accuracy"]["std"] == pytest.approx(np.std(values))


def test_only_as_many_clients_are_asked_as_the_config_says() -> None:
    result, _ = judged(federation(evaluate={"every": 0, "held_out": 0.3, "clients": 4}))
    assert result["clients"]["spread"]["loss"]["clients"] == 4


def test_nobody_is_asked_where_nothing_is_held_out() -> None:
    result, records = judged(federation(evaluate={"every": 0, "held_out": 0.0}))
    assert "clients" not in result and {r["split"] for r in records} == {"validation"}


def test_fine_tuned_models_are_those_that_clients_train_on_their_own_examples() -> None:
    found = federation(evaluate={"every": 0, "held_out": 0.3, "fine_tune_epochs": 2}, backend="loop")
    result, _ = judged(found)
    client = 3
    data = found.clients.data(client, seed_of(0, "judge", client))
    shard = training_only(data).shard()
    cohort = Cohort(found.run.recipe, found.clients.spec)
    (own,) = cohort.train(found.first, [Job("3", shard, 2 * shard.steps_per_epoch(found.run.recipe.train))])
    task = found.run.recipe.build(found.clients.spec).eval()
    found.frame.put(task, own.vector)
    held_out = data.splits["validation"]
    inputs, targets = held_out.take(held_out.addresses(0, None))
    accuracy = float((task.network(inputs).argmax(1) == targets).double().mean())
    personal, shared = result["personal"], result["clients"]
    assert personal["metrics"]["loss"] < shared["metrics"]["loss"]
    only = federation(evaluate={"every": 0, "held_out": 0.3, "fine_tune_epochs": 2}, backend="loop")
    verdicts: list[Verdict] = []
    order, chunks = Order(1, only.first), only.chunks([type(work)(work.client, 1) for work in all_works(only)])
    for _, part in local(only).judge(order, chunks):
        verdicts += part.verdicts
    (mine,) = [v for v in verdicts if v.client == client and v.model == "personal"]
    assert mine.metrics["accuracy"] == pytest.approx(accuracy, abs=1e-9)


def all_works(found: Federation) -> list[Any]:
    from federated.intake import Work

    return [Work(client, 1) for client in range(len(found.clients))]


def test_a_backdoor_is_measured_by_how_often_it_opens() -> None:
    attack = {"kind": "backdoor", "share": 0.5, "target": 3, "size": 3}
    found = federation(attack=attack, rounds=6, cohort=None, local_epochs=4, evaluate={"every": 0, "held_out": 0.0})
    before, _ = judged(found)
    after, _ = judged(found, Server(found, local(found)).serve().weights)
    assert after["backdoor"]["accuracy"] > 0.7 and before["backdoor"]["accuracy"] < 0.4
