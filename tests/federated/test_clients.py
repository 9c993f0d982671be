"""Clients: what one of them sees is its own share of the data, as if it had loaded that alone."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data import Augment, Data, Image, Split, Table, Text, load
from core.data.augment import Augmentation
from core.data.examples import Stacked
from core.errors import ConfigError, DataError
from core.models import MLP
from core.recipe import Recipe, Training
from core.train import fit
from federated.clients import PartitionedClients
from federated.partition import IID, Column, Dirichlet, Feature, Partition, Quantity, make_partition

DIGITS = load(Image(), "class")
TRAIN = Training(steps=12, batch_size=8)


def clients_of(
    data: Data = DIGITS, config: Dirichlet | Feature | Quantity | IID | None = None, count: int = 10, **how: float
) -> PartitionedClients:
    partition = make_partition(config or Dirichlet(), data, Image(), count, 0)
    return PartitionedClients(data, partition, how.get("held_out", 0.2), int(how.get("seed", 0)))


def own(clients: PartitionedClients, client: int, split: str) -> torch.Tensor:
    return clients.data(client, 0).splits[split].addresses(0, None)


@settings(max_examples=50)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    held_out=st.one_of(st.just(0.0), st.floats(0.001, 0.999)),
    seed=st.integers(0, 1000),
)
def test_each_example_trains_or_is_held_out_by_its_client(sizes: list[int], held_out: float, seed: int) -> None:
    owner = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    data = replace(DIGITS, splits={"train": Stacked(torch.zeros(len(owner), 1), torch.zeros(len(owner)))})
    partition = Partition.of(owner, len(sizes))
    clients = PartitionedClients(data, partition, held_out, seed)
    assert len(clients) == len(sizes)
    for client, size in enumerate(sizes):
        train, held = own(clients, client, "train"), own(clients, client, "validation")
        assert torch.equal(torch.cat([train, held]).sort().values, partition.rows(client))
        assert (len(train), len(held)) == (int(clients.sizes[client]), int(clients.held_out_sizes[client]))
        wanted = max(1, round(size * held_out)) if held_out else 0
        # float32 rounds a half the other way now and then
        assert len(train) >= 1 and abs(len(held) - min(wanted, size - 1)) <= (abs(size * held_out % 1 - 0.5) < 1e-5)
        assert len(clients.data(client, 0).splits["test"]) == 0


def test_the_seed_alone_decides_what_is_held_out() -> None:
    first, again, other = (clients_of(seed=seed) for seed in (0, 0, 1))
    assert torch.equal(own(first, 3, "validation"), own(again, 3, "validation"))
    assert not torch.equal(own(first, 3, "validation").sort().values, own(other, 3, "validation").sort().values)


def test_a_clients_batches_are_those_of_its_rows_alone() -> None:
    clients = clients_of()
    whole, rows = DIGITS.splits["train"], own(clients, 4, "train")
    alone = replace(DIGITS, seed=9, splits={"train": Stacked(whole.inputs[rows], whole.targets[rows])})
    mine, its = clients.data(4, 9).shard(), alone.shard()
    for step in range(TRAIN.steps):
        batch, expected = mine.batch(TRAIN, step), its.batch(TRAIN, step)
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], expected[name]) for name in expected)
    assert not torch.equal(clients.data(4, 8).shard().batch(TRAIN, 0)["inputs"], mine.batch(TRAIN, 0)["inputs"])


def test_a_client_evaluates_on_what_it_holds_out() -> None:
    clients = clients_of()
    whole, rows = DIGITS.splits["train"], own(clients, 2, "validation")
    batches = list(clients.data(2, 0).shard().held_out("validation", 7))
    kept = torch.cat([batch["inputs"][batch["weight"] > 0] for batch in batches])
    assert len(rows) > 7 and torch.equal(kept, whole.inputs[rows])


def test_weights_stay_with_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,w,label\n" + "".join(f"{i},{i / 10},{'no' if i % 2 else 'yes'}\n" for i in range(80)))
    data = load(Table(path=str(path), weight="w", normalize=False), "class")
    for client in range(8):
        shard = clients_of(data, IID(), 8).data(client, 5).shard()
        for batch in (shard.batch(TRAIN, 3), *shard.held_out("validation", 2)):
            used = batch["weight"] > 0
            assert used.any() and torch.equal(batch["weight"][used], batch["inputs"][used, 0] / 10)


def test_augmentation_is_that_of_the_data() -> None:
    data = load(Image(augment=Augment(flip=True, noise=0.1)), "class")
    client = clients_of(data).data(0, 3)
    plain = replace(client, augmentation=Augmentation())
    assert client.augmentation is data.augmentation
    assert not torch.equal(client.shard().batch(TRAIN, 0)["inputs"], plain.shard().batch(TRAIN, 0)["inputs"])


def test_windows_of_a_text_stay_where_they_are() -> None:
    source = Text(path="bundled:english", context=32)
    data = load(source, "token")
    clients = PartitionedClients(data, make_partition(Column(), data, source, None, 0), 0.1, 0)
    windows, share = data.splits["train"], clients.data(5, 1)
    seen = torch.cat([share.splits["train"].addresses(1, epoch) for epoch in (0, 1)])
    assert len(seen.unique()) == len(share.splits["train"]) and (seen % 32 == 0).all()
    inputs, targets = share.splits["train"].take(seen[:4])
    assert torch.equal(inputs, torch.stack([windows.tokens[a : a + 32] for a in seen[:4].tolist()]))
    assert torch.equal(targets[:, :-1], inputs[:, 1:])
    assert share.bytes_per_token is not None and share.spec == data.spec


# --- noise ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "validation"])
def test_noise_on_images_is_the_clients_own_and_the_same_in_every_epoch(split: str) -> None:
    clients = clients_of(DIGITS, Feature(noise=1.0), 5)
    for client in range(5):
        examples = clients.data(client, 0).splits[split]
        rows = examples.addresses(0, None)
        inputs, _ = examples.take(rows)
        clean = DIGITS.splits["train"].inputs[rows]
        assert float((inputs - clean).std()) == pytest.approx((client + 1) / 5, rel=0.06)
        # its noise is that of the example, whoever it is taken with
        assert torch.equal(inputs[[7, 3]], clients.data(client, 1).splits[split].take(rows[[7, 3]])[0])
        assert not torch.equal((inputs - clean)[0], (inputs - clean)[1])


def test_the_seed_of_the_clients_decides_the_noise() -> None:
    rows = torch.tensor([0, 1])
    first, again, other = (
        clients_of(DIGITS, Feature(), 2, seed=seed).data(0, 0).splits["train"].take(rows)[0] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("categories", ["one_hot", "integer"])
def test_noise_on_a_table_leaves_texts_alone(categories: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,city,b,label\n" + "".join(f"{i},{'UKB'[i % 3]},{i % 5},{i % 2}\n" for i in range(90)))
    data = load(Table(path=str(path), categories=categories), "class")
    clients = clients_of(data, Feature(noise=1.0), 3)
    examples = clients.data(2, 0).splits["train"]
    rows = examples.addresses(0, None)
    change = examples.take(rows)[0] - data.splits["train"].inputs[rows]
    is_number = torch.tensor([True, *[False] * (3 if categories == "one_hot" else 1), True])
    assert (change[:, is_number] != 0).all() and (change[:, ~is_number] == 0).all()


def test_other_partitions_add_no_noise() -> None:
    examples = clients_of().data(0, 0).splits["train"]
    rows = examples.addresses(0, None)
    assert torch.equal(examples.take(rows)[0], DIGITS.splits["train"].inputs[rows])


# --- as a part of a simulation -------------------------------------------------------------------------------------


def test_a_client_copies_nothing() -> None:
    clients = clients_of()
    first, again = clients.data(3, 0).splits["train"], clients.data(3, 1).splits["train"]
    assert first.own.data_ptr() == again.own.data_ptr() and first.whole is DIGITS.splits["train"]


@pytest.mark.parametrize("config", [Dirichlet(), Feature()], ids=lambda c: c.kind)
def test_clients_are_the_same_in_another_process(config: Dirichlet | Feature) -> None:
    clients = clients_of(config=config)
    sent = pickle.loads(pickle.dumps(clients))
    ours, theirs = (c.data(6, 2).shard().block(TRAIN, range(4)) for c in (clients, sent))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(sent.sizes, clients.sizes) and sent.fingerprint == DIGITS.fingerprint


def test_a_client_of_one_example_trains_on_it() -> None:
    clients = clients_of(count=1437, config=IID(), held_out=0.5)
    assert clients.sizes.unique().tolist() == [1] and clients.held_out_sizes.unique().tolist() == [0]
    recipe = Recipe(data=Image(), model=MLP(hidden=(8,)), train=TRAIN)
    result = fit(recipe, clients.data(11, 0).shard())
    assert result.ended == "done" and result.loss is not None


@pytest.mark.parametrize("held_out", [-0.1, 1.0, float("nan")])
def test_a_share_that_leaves_nothing_is_refused(held_out: float) -> None:
    with pytest.raises(ConfigError, match=r"held_out: must be in \[0, 1\), got"):
        clients_of(held_out=held_out)


def test_a_client_without_examples_is_refused() -> None:
    owner = np.where(np.arange(1437) % 4 == 2, 0, np.arange(1437) % 4)
    with pytest.raises(DataError, match="client 2 has no training example"):
        PartitionedClients(DIGITS, Partition.of(owner, 4), 0.1, 0)


def test_folds_and_shares_of_the_data_stay_with_the_server() -> None:
    data = load(Image(split=Split(folds=5)), "class")
    clients = clients_of(data)
    assert int(clients.sizes.sum() + clients.held_out_sizes.sum()) == data.sizes["train"]
    assert clients.spec == data.spec and clients.preprocess is data.preprocess
