"""Every engine against the plain loop, and against each other."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from core.config import parse_run
from core.errors import ConfigError, DataError, WorkerError
from core.pool import Done, LocalPool, ProcessPool, WorkerPool
from federated.engine import PoolEngine
from federated.exchange import UPDATE, Reply, Total
from federated.federation import Federation
from federated.flower.own_data import FarClients
from federated.run import FederateRun
from federated.server import Watch
from federated.strategies import CenteredClipping, FedBuff
from tests.federated.reference import reference, served

CONFIG: dict[str, Any] = {
    "data": {"kind": "image"},
    "model": {"kind": "mlp", "hidden": [16]},
    "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.0},
    "train": {"batch_size": 16},
    "clients": 12,
    "cohort": 5,
    "rounds": 3,
    "partition": {"kind": "dirichlet", "alpha": 0.5},
    "evaluate": {"every": 0, "held_out": 0.1},
}
ADDITIVE: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedavgm": {},
    "fedadagrad": {},
    "fedadam": {},
    "fedyogi": {},
    "fedprox": {"mu": 0.5},
    "scaffold": {},
    "fednova": {},
    "qfedavg": {"q": 0.5},
    "ditto": {},
    "norm_bounding": {"bound": 0.3},
}


def federation(**changes: Any) -> Federation:
    return Federation.of(parse_run(FederateRun, {**CONFIG, **changes}))


def local(found: Federation) -> PoolEngine:
    return PoolEngine(LocalPool(), found.setting)


class Backwards(LocalPool):
    """Gives its results in the reverse order, as workers might."""

    def run(self, fn: Any, items: Mapping[Any, Any], cost: Any = None) -> Iterator[Done[Any, Any]]:
        return iter(list(super().run(fn, dict(reversed(list(items.items()))))))


@pytest.mark.parametrize("kind", ADDITIVE)
@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_every_additive_strategy_comes_to_the_weights_of_the_plain_loop(kind: str, backend: str) -> None:
    found = federation(strategy={"kind": kind, **ADDITIVE[kind]}, backend=backend)
    wanted, got = reference(found), served(found, local(found))
    moved = float((wanted - found.first).abs().max())
    assert moved > 0.01
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-5 * max(1.0, moved))


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_clients_keep_their_norm_layers_with_fedbn(backend: str) -> None:
    model = {"kind": "cnn", "channels": [4], "norm": "group", "hidden": 8}
    found = federation(strategy={"kind": "fedbn"}, model=model, backend=backend)
    torch.testing.assert_close(served(found, local(found)), reference(found), rtol=0, atol=2e-5)


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_an_asynchronous_server_comes_to_the_weights_of_the_plain_loop(backend: str) -> None:
    devices = {"speed": {"kind": "lognormal", "median": 100.0, "sigma": 1.0}}
    strategy = {"kind": "fedbuff", "buffer": 3, "concurrency": 6}
    found = federation(strategy=strategy, cohort=None, rounds=6, devices=devices, backend=backend)
    plans = list(found.schedule.plans())
    assert any(job.counts_in > job.round for plan in plans for job in plan.jobs), "some replies are stale"
    torch.testing.assert_close(served(found, local(found)), reference(found), rtol=0, atol=2e-5)


def test_batch_statistics_are_averaged_like_weights() -> None:
    model = {"kind": "cnn", "channels": [4], "norm": "batch", "hidden": 8}
    found = federation(model=model)
    assert found.frame.size > found.frame.trainable
    torch.testing.assert_close(served(found, local(found)), reference(found), rtol=0, atol=2e-5)


def test_a_server_that_sees_no_data_refuses_batches_of_one_row_before_round_1() -> None:
    norms = {"kind": "resnet", "width": 4, "depth": 1, "stages": 4, "norm": "batch"}  # its last pictures have one pixel
    found = federation(model=norms, clients=3, cohort=None)
    for sizes in ([5, 7, 3], [0, 7, 0]):  # a node with its own data knows the size of its own client alone
        replace(found, clients=FarClients(found.clients.preprocess, torch.tensor(sizes), torch.zeros(3)))
    with pytest.raises(ConfigError, match="clients: client 1: a batch of one row has no batch statistics"):
        replace(found, clients=FarClients(found.clients.preprocess, torch.tensor([5, 1, 3]), torch.zeros(3)))


@pytest.mark.parametrize("kind", ["fedavg", "ditto"])
def test_clients_with_batch_norm_and_less_than_a_batch_train_as_rows_as_they_do_alone(kind: str) -> None:
    model = {"kind": "cnn", "channels": [4], "norm": "batch", "hidden": 8}
    evaluate = {"every": 1, "held_out": 0.2, "fine_tune_epochs": 1.0}
    changes = {"model": model, "train": {"batch_size": 150}, "evaluate": evaluate, "strategy": {"kind": kind}}
    records: dict[str, list[dict[str, Any]]] = {"loop": [], "vmap": []}
    sets = [federation(**changes, backend=backend) for backend in records]
    rows = sets[0].clients.sizes.clamp(max=150)
    assert len(rows.unique()) > 4, "the clients' batches are of unequal sizes"
    loop, vmap = (served(f, local(f), Watch(records[f.run.backend].append)) for f in sets)
    torch.testing.assert_close(vmap, loop, rtol=0, atol=2e-5)
    losses = [[r["loss"] for r in some if r.get("split") == "personal"] for some in records.values()]
    assert losses[0] and losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("kind", ["fedavgm", "fedadagrad", "fedadam", "fedyogi", "fednova", "scaffold"])
def test_a_servers_learning_rate_moves_what_is_learned_and_leaves_batch_statistics_to_their_mean(kind: str) -> None:
    changes = {"model": {"kind": "cnn", "channels": [4], "norm": "batch", "hidden": 8}, "rounds": 1}
    changes |= {"partition": {"kind": "iid"}, "clients": 5, "cohort": None, "evaluate": {"every": 0, "held_out": 0.0}}
    plain = federation(**changes)
    found = federation(**changes, strategy={"kind": kind, "server_lr": 0.5})
    trainable, tolerance = plain.frame.trainable, {"rtol": 0, "atol": 1e-2}  # sizes differ by one example
    ours, theirs = served(found, local(found)), served(plain, local(plain))
    torch.testing.assert_close(ours[trainable:], theirs[trainable:], **tolerance)
    assert not torch.allclose(ours[:trainable], theirs[:trainable], atol=1e-3)
    assert not torch.allclose(ours[trainable:], found.first[trainable:], atol=0.05)


@pytest.mark.parametrize(
    "strategy, said",
    [
        ({"kind": "fedavg", "server_lr": 0.5}, r"strategy\.server_lr: here it scales batch statistics too"),
        ({"kind": "median", "server_lr": 0.5}, r"strategy\.server_lr: here it scales batch statistics too"),
        ({"kind": "norm_bounding", "server_lr": 0.5}, r"strategy\.server_lr: here it scales batch statistics too"),
        ({"kind": "fedbuff", "buffer": 2, "concurrency": 4}, r"strategy\.kind: an asynchronous server adds up changes"),
        ({"kind": "centered_clipping"}, r"strategy\.kind: centered_clipping goes on where the last round went"),
        ({"kind": "flower", "name": "FedAdam"}, r"strategy\.name: Flower's server optimizers move batch statistics"),
    ],
)
def test_strategies_that_would_spoil_batch_statistics_are_refused_with_the_reason(
    strategy: dict[str, Any], said: str
) -> None:
    model = {"kind": "cnn", "channels": [4], "norm": "batch", "hidden": 8}
    with pytest.raises(ConfigError, match=said):
        federation(model=model, cohort=None, strategy=strategy)


def test_changes_from_stale_statistics_and_a_moving_center_can_take_a_variance_below_0() -> None:
    variance, total = torch.tensor([10.0]), Total()
    total.add(Reply(0, 1.0, {UPDATE: torch.tensor([-9.0])}))  # from 10 to the 1 that a client measured
    empty = {"momentum": torch.zeros(0)}
    once, _ = FedBuff(buffer=1, concurrency=2).step(variance, empty, total, 2)
    stale, _ = FedBuff(buffer=1, concurrency=2).step(once, empty, total, 2)  # measured by another before that
    assert once == 1.0 and stale < 0
    still = torch.zeros(3, 1)  # clients that measure 1 again
    moved = CenteredClipping(radius=1.0, iterations=1).rule(still, {"center": torch.tensor([-9.0])})
    assert 1.0 + moved < 0


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"evaluate": {"clients": 13}}, r"evaluate\.clients: 13 are to judge, and there are 12 clients"),
        *(
            ({"strategy": {"kind": kind}, "schedule": {"kind": "constant", "level": 0}}, r"schedule\.level: .* above 0")
            for kind in ("scaffold", "qfedavg")
        ),
        ({"local_epochs": math.inf}, "local_epochs: should be a finite number, got inf"),
        ({"strategy": {"kind": "fedprox", "mu": math.inf}}, r"strategy\.mu: should be a finite number"),
        ({"strategy": {"kind": "fedadam", "tau": math.inf}}, r"strategy\.tau: should be a finite number"),
        ({"partition": {"kind": "dirichlet", "alpha": math.inf}}, r"partition\.alpha: should be a finite number"),
        ({"evaluate": {"fine_tune_epochs": math.nan}}, r"evaluate\.fine_tune_epochs: should be a finite number"),
    ],
)
def test_numbers_that_no_run_can_bear_are_refused_when_they_are_read(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        federation(**changes)


def test_a_full_cohort_of_one_step_is_centralized_gradient_descent() -> None:
    found = federation(cohort=None, local_steps=1, train={"batch_size": 2000}, evaluate={"every": 0, "held_out": 0.0})
    task, data = found.task, found.central
    assert data is not None
    rows = data.splits["train"]
    inputs, targets = rows.take(rows.addresses(0, None))
    got = served(found, local(found))
    found.frame.put(task, found.first)
    for _ in range(3):
        each, _ = task({"inputs": inputs, "targets": targets, "weight": torch.ones(len(inputs))})
        gradients = torch.autograd.grad(each.mean(), list(task.parameters()))
        with torch.no_grad():
            for p, gradient in zip(task.parameters(), gradients, strict=True):
                p -= 0.1 * gradient
    torch.testing.assert_close(got, found.frame.vector(task), rtol=0, atol=1e-6)


@pytest.mark.parametrize("strategy", [{"kind": "fedadam"}, {"kind": "scaffold"}, {"kind": "median"}])
@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_the_order_of_completion_changes_no_bit(strategy: dict[str, Any], backend: str) -> None:
    found = federation(strategy=strategy, backend=backend, clients=40, cohort=24, local_steps=2)
    backwards = PoolEngine(Backwards(), found.setting)
    assert torch.equal(served(found, local(found)), served(found, backwards))


@contextmanager
def ray() -> Iterator[WorkerPool]:
    from cluster.pool import ray_pool

    with ray_pool(2) as pool:
        yield pool


@pytest.mark.parametrize(
    "two_workers", [lambda: ProcessPool(2), pytest.param(ray, marks=[pytest.mark.ray, pytest.mark.slow])]
)
def test_two_workers_change_no_bit(two_workers: Callable[[], AbstractContextManager[WorkerPool]]) -> None:
    changes: list[dict[str, Any]] = [
        {"backend": "loop", "clients": 30, "cohort": 14},
        {"backend": "vmap", "clients": 30, "cohort": 14},
        {"strategy": {"kind": "scaffold"}, "transforms": [{"kind": "int8"}]},
        {"strategy": {"kind": "krum"}, "attack": {"kind": "alie", "share": 0.2}},
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with two_workers() as pool:
            for change in changes:
                found = federation(**change)
                here, there = served(found, local(found)), served(found, PoolEngine(pool, found.setting))
                assert torch.equal(here, there), change
    finally:
        torch.set_num_threads(threads)


def test_a_client_that_raises_is_told_of_and_the_round_goes_on() -> None:
    found = federation()
    broken = next(found.schedule.plans()).jobs[0].client

    class Breaking:
        def __getattr__(self, name: str) -> Any:
            return getattr(found.clients, name)

        def __len__(self) -> int:
            return len(found.clients)

        def data(self, client: int, seed: int) -> Any:
            if client == broken:
                raise OSError("the disk is gone")
            return found.clients.data(client, seed)

    breaking = replace(found, clients=Breaking())
    records: list[dict[str, Any]] = []
    weights = served(breaking, local(breaking), Watch(records.append))
    failed = [r for r in records if r.get("event") == "client_failed"]
    assert {r["client"] for r in failed} == {broken}
    assert failed[0]["reason"] == "OSError: the disk is gone"
    assert 'raise OSError("the disk is gone")' in failed[0]["traceback"]
    first = next(r for r in records if r.get("split") == "train")
    assert first["clients"] == 4 and first["failed"] == 1
    assert bool(torch.isfinite(weights).all()) and not torch.equal(weights, found.first)


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_a_client_whose_examples_cannot_be_read_in_the_middle_of_training_is_told_of(backend: str) -> None:
    found = federation(backend=backend, rounds=1)
    broken = next(found.schedule.plans()).jobs[0].client

    class Unreadable:
        def __init__(self, examples: Any) -> None:
            self.examples, self.weight, self.is_costly = examples, examples.weight, False

        def __len__(self) -> int:
            return len(self.examples)

        def addresses(self, seed: int, epoch: int | None) -> Any:
            return self.examples.addresses(seed, epoch)

        def take(self, addresses: Any) -> Any:
            raise DataError("img_7.png: cannot be read")

    class Breaking:
        def __getattr__(self, name: str) -> Any:
            return getattr(found.clients, name)

        def __len__(self) -> int:
            return len(found.clients)

        def data(self, client: int, seed: int) -> Any:
            data = found.clients.data(client, seed)
            if client != broken:
                return data
            return replace(data, splits={**data.splits, "train": Unreadable(data.splits["train"])})

    breaking = replace(found, clients=Breaking())
    records: list[dict[str, Any]] = []
    weights = served(breaking, local(breaking), Watch(records.append))
    (failed,) = [r for r in records if r.get("event") == "client_failed"]
    assert failed["client"] == broken and failed["reason"] == "img_7.png: cannot be read"
    assert not torch.equal(weights, found.first)


def test_a_client_that_diverges_is_quarantined_and_named() -> None:
    records: list[dict[str, Any]] = []
    for backend in ("loop", "vmap"):
        found = federation(optimizer={"kind": "sgd", "lr": 1e30, "momentum": 0.0}, rounds=1, backend=backend)
        with pytest.raises(WorkerError, match="no reply has counted in 1 round; client"):
            served(found, local(found), Watch(records.append))
    bad = [r for r in records if r.get("event") == "quarantined"]
    assert len(bad) == 10 and all("finite" in r["reason"] or "norm" in r["reason"] for r in bad)


def test_a_reply_past_the_largest_norm_does_not_count() -> None:
    records: list[dict[str, Any]] = []
    found = federation(attack={"kind": "sign_flip", "scale": 1e6, "share": 0.25}, max_norm=50.0, rounds=4)
    weights = served(found, local(found), Watch(records.append))
    attackers = {c for c in range(12) if found.run.attack and found.run.attack.is_attacker(c, 12, 0)}
    bad = {r["client"] for r in records if r.get("event") == "quarantined"}
    assert bad and bad <= attackers
    assert float((weights - found.first).norm()) < 50


def test_clients_with_poolings_train_with_privacy() -> None:
    records: list[dict[str, Any]] = []
    model = {"kind": "cnn", "channels": [4, 4], "hidden": 8}
    privacy = {"clip": 1.0, "noise_multiplier": 0.1, "noise": "keyed"}
    found = federation(model=model, backend="loop", clients=4, cohort=2, rounds=1, privacy=privacy)
    weights = served(found, local(found), Watch(records.append))
    assert not [r for r in records if r.get("event") == "client_failed"]
    assert not torch.equal(weights, found.first)
