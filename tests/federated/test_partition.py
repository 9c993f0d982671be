"""Partitions: every example has one client, the skew is the one that was asked for, natural ids stay together."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data import BPE, Data, DataConfig, Image, Split, Table, Text, load
from core.data.examples import Stacked
from core.errors import ConfigError, DataError
from core.randomness import numpy_generator
from federated.partition import (
    IID,
    Column,
    Dirichlet,
    Feature,
    Labels,
    Partition,
    PartitionConfig,
    Quantity,
    Shards,
    make_partition,
)
from federated.partition.deal import by_shares, even, filled
from federated.partition.picture import counts, effective_labels

DIGITS = load(Image(), "class")
KINDS: list[PartitionConfig] = [
    IID(),
    Dirichlet(alpha=0.3),
    Dirichlet(alpha=0.3, balanced=True),
    Labels(per_client=3),
    Shards(),
    Quantity(alpha=0.3),
    Feature(),
]
WHOLE = Split(validation=0.0, test=0.0)


def labeled(labels: np.ndarray) -> Data:
    """Data with these labels of 10 classes."""
    examples = Stacked(torch.zeros(len(labels), 1), torch.from_numpy(labels.astype(np.int64)))
    return replace(DIGITS, splits={"train": examples}, rows=None)


def even_labels(count: int) -> Data:
    return labeled(np.arange(count) % 10)


def deal(config: PartitionConfig, data: Data = DIGITS, clients: int | None = 10, seed: int = 0) -> Partition:
    return make_partition(config, data, Image(), clients, seed)


def is_complete(partition: Partition, count: int) -> bool:
    """Whether every example belongs to exactly one client."""
    together = torch.cat([partition.rows(client) for client in range(len(partition))])
    return torch.equal(together.sort().values, torch.arange(count))


# --- all kinds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", KINDS, ids=lambda c: f"{c.kind}{getattr(c, 'balanced', '')}")
@settings(max_examples=25)
@given(
    labels=st.lists(st.integers(0, 9), min_size=60, max_size=200).filter(lambda given: len(set(given)) >= 3),
    clients=st.integers(4, 30),
    seed=st.integers(0, 2**40),
)
def test_every_example_belongs_to_exactly_one_client_and_nobody_has_none(
    config: PartitionConfig, labels: list[int], clients: int, seed: int
) -> None:
    partition = deal(config, labeled(np.array(labels)), clients, seed)
    assert len(partition) == clients and is_complete(partition, len(labels))
    assert int(partition.sizes.min()) >= 1
    assert partition.owner[partition.rows(1)].unique().tolist() == [1]


@pytest.mark.parametrize("config", KINDS, ids=lambda c: f"{c.kind}{getattr(c, 'balanced', '')}")
def test_the_seed_alone_decides_who_has_what(config: PartitionConfig) -> None:
    first, again, other = deal(config), deal(config), deal(config, seed=1)
    assert torch.equal(first.order, again.order) and torch.equal(first.offsets, again.offsets)
    assert not torch.equal(first.owner, other.owner)


@pytest.mark.parametrize("config", KINDS, ids=lambda c: f"{c.kind}{getattr(c, 'balanced', '')}")
def test_no_client_has_fewer_than_min_size(config: PartitionConfig) -> None:
    partition = deal(replace(config, min_size=12), clients=100)
    assert int(partition.sizes.min()) >= 12 and is_complete(partition, 1437)


@settings(max_examples=100)
@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_filling_moves_no_more_than_is_missing_and_takes_from_the_largest(
    sizes: list[int], share: float, seed: int
) -> None:
    owner = np.repeat(np.arange(len(sizes)), sizes)
    min_size = int(share * (len(owner) // len(sizes)))
    after = filled(owner, len(sizes), min_size, numpy_generator(seed))
    new = np.bincount(after, minlength=len(sizes))
    assert (after != owner).sum() == np.maximum(min_size - np.array(sizes), 0).sum()
    assert (new[np.array(sizes) < min_size] == min_size).all()
    gave = new < sizes
    assert not gave.any() or new.max() <= new[gave].min() + 1


@pytest.mark.parametrize("clients", [1, 1437])
def test_one_client_and_as_many_as_examples_are_fine(clients: int) -> None:
    for config in (IID(), Dirichlet(alpha=0.1), Dirichlet(balanced=True), Quantity(), Feature(), Shards(per_client=1)):
        assert set(deal(config, clients=clients).sizes.tolist()) == {1437 // clients}


# --- the kinds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [IID(), Feature(), Dirichlet(alpha=0.1, balanced=True)], ids=lambda c: c.kind)
def test_sizes_of_an_even_partition_differ_by_one_at_most(config: PartitionConfig) -> None:
    sizes = deal(config, clients=22).sizes
    assert int(sizes.max() - sizes.min()) == 1


def test_an_iid_client_has_the_label_mix_of_all() -> None:
    table = counts(deal(IID(), even_labels(20_000)), even_labels(20_000))
    # 2000 draws of 10 labels: deviation 13
    assert (table - 200).abs().max() < 60


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_of_a_label_vary_as_those_of_a_dirichlet_draw(alpha: float) -> None:
    data = even_labels(20_000)
    shares = torch.cat([counts(deal(Dirichlet(alpha=alpha), data, 5, seed), data).T / 2000 for seed in range(60)])
    # a coordinate of Dir(alpha) over 5 has mean 1/5 and variance (1/5)(4/5) / (5 alpha + 1)
    assert shares.mean(dim=0).sub(0.2).abs().max() < 0.05
    assert shares.var(dim=0).mean() == pytest.approx(0.16 / (5 * alpha + 1), rel=0.15)


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_balanced_clients_mix_labels_as_a_dirichlet_draw(alpha: float) -> None:
    data = even_labels(100_000)
    table = counts(deal(Dirichlet(alpha=alpha, balanced=True), data, 1000), data)
    assert table.sum(dim=1).unique().tolist() == [100] and table.sum(dim=0).unique().tolist() == [10_000]
    # the variance of a Dirichlet share of 10, and that of 100 draws by it
    spread = 0.09 / (10 * alpha + 1)
    wanted = spread + (0.09 - spread) / 100
    assert (table / 100).var() == pytest.approx(wanted, rel=0.1)


def test_balanced_mixes_follow_the_frequency_of_labels() -> None:
    data = labeled(np.repeat([0, 1], [90_000, 10_000]))
    shares = counts(deal(Dirichlet(alpha=1.0, balanced=True), data, 1000), data)[:, 0] / 100
    # Dir(1.8, 0.2) has mean 0.9 and variance 0.9 * 0.1 / (2 + 1)
    assert shares.mean() == pytest.approx(0.9)
    assert shares.var() == pytest.approx(0.03 + 0.06 / 100, rel=0.1)


def test_a_small_alpha_leaves_a_client_one_label_and_a_large_one_all() -> None:
    data = even_labels(10_000)
    for balanced in (False, True):
        few, all_of_them = (
            effective_labels(counts(deal(Dirichlet(alpha=alpha, balanced=balanced), data, 200), data)).median()
            for alpha in (1e-3, 1e4)
        )
        assert few < 1.5 and all_of_them > 9


@settings(max_examples=60)
@given(clients=st.integers(1, 40), k=st.integers(1, 10), seed=st.integers(0, 1000))
def test_a_client_of_k_labels_has_k_labels_and_no_label_is_left_over(clients: int, k: int, seed: int) -> None:
    data = even_labels(4000)
    if clients * k < 10:
        with pytest.raises(ConfigError, match="leave some of the 10 labels to nobody"):
            deal(Labels(per_client=k), data, clients, seed)
        return
    table = counts(deal(Labels(per_client=k), data, clients, seed), data)
    assert ((table > 0).sum(dim=1) == k).all()
    for column in table.T:
        assert column[column > 0].max() - column[column > 0].min() <= 1


def test_labels_are_chosen_uniformly() -> None:
    data = even_labels(60_000)
    table = counts(deal(Labels(per_client=3), data, 6000), data) > 0
    # 1800 holders of each label in the mean, and of each pair of labels 6000 * 3 * 2 / 90 = 400
    pairs = table.T.double() @ table.double()
    assert pairs.diagonal().sub(1800).abs().max() < 150
    assert (pairs + torch.eye(10) * 1e9).min() > 320 and (pairs - torch.diag(pairs.diagonal())).max() < 480


def test_a_client_too_small_gets_more_of_its_own_labels() -> None:
    data = even_labels(1000)
    partition = deal(Labels(per_client=2, min_size=9), data, 100)
    assert int(partition.sizes.min()) == 9 and ((counts(partition, data) > 0).sum(dim=1) <= 2).all()


def test_min_sizes_that_labels_do_not_allow_are_refused() -> None:
    data = labeled(np.repeat([0, 1], [190, 10]))
    with pytest.raises(
        ConfigError, match=r"partition.min_size: client \d+ gets 5 examples of its 1 labels, fewer than"
    ):
        deal(Labels(per_client=1, min_size=30), data, 4)


def test_a_client_of_two_shards_sees_few_labels_and_every_shard_is_dealt() -> None:
    partition = deal(Shards(per_client=2), even_labels(6000), 100)
    table = counts(partition, even_labels(6000))
    # 200 shards of 30 fit into the 600 of a label
    assert partition.sizes.unique().tolist() == [60]
    assert set(table.flatten().tolist()) == {0, 30, 60} and ((table > 0).sum(dim=1) <= 2).all()


def test_quantity_skews_sizes_and_leaves_labels_alike() -> None:
    data = even_labels(20_000)
    partitions = [deal(Quantity(alpha=1.0), data, 10, seed) for seed in range(60)]
    shares = torch.stack([partition.sizes / 20_000 for partition in partitions])
    assert shares.var(dim=0).mean() == pytest.approx(0.09 / 11, rel=0.2)
    largest = counts(partitions[0], data)[partitions[0].sizes.argmax()]
    assert (largest / largest.sum() - 0.1).abs().max() < 0.02


@settings(max_examples=50)
@given(parts=st.integers(1, 50), count=st.integers(1, 300), seed=st.integers(0, 1000))
def test_dealing_by_shares_rounds_each_share_up_or_down(parts: int, count: int, seed: int) -> None:
    draws = numpy_generator(seed)
    shares = draws.dirichlet(np.full(parts, 0.3))
    owner = by_shares(shares, count, draws)
    sizes = np.bincount(owner, minlength=parts)
    assert len(owner) == count and (np.diff(owner) >= 0).all() and len(sizes) == parts
    assert (np.abs(sizes - shares * count) < 1 + 1e-6).all()
    equal = np.bincount(even(count, parts), minlength=parts)
    assert equal.sum() == count and equal.max() - equal.min() <= 1


def test_small_shares_lose_nothing_to_rounding() -> None:
    # each of 20 parts has a right to half an example of ten
    sizes = [np.bincount(by_shares(np.full(20, 0.05), 10, numpy_generator(i)), minlength=20) for i in range(400)]
    assert np.abs(np.mean(sizes, axis=0) - 0.5).max() < 0.12


def test_noise_grows_from_client_to_client() -> None:
    assert deal(Feature(noise=0.8), clients=4).noise.tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert deal(IID()).noise is None


def test_real_targets_are_skewed_by_their_deciles() -> None:
    source = Table(path="bundled:diabetes")
    data = load(source, "real")
    table = counts(make_partition(Labels(per_client=1), data, source, 10, 0), data)
    assert table.shape == (10, 10) and ((table > 0).sum(dim=1) == 1).all()
    # 354 targets, of which some are equal
    assert table.sum(dim=0).min() > 25 and table.sum(dim=0).max() < 45
    targets, order = data.splits["train"].targets[:, 0], table.argmax(dim=1).argsort()
    means = [targets[make_partition(Labels(per_client=1), data, source, 10, 0).rows(int(c))].mean() for c in order]
    assert means == sorted(means)


# --- natural ids ---------------------------------------------------------------------------------------------------


def letters(path: Path, count: int = 60) -> Table:
    """Rows of four writers of different diligence, whose names are no input."""
    names = [("ann", "ben", "eva", "kai")[int(i**0.5) % 4] for i in range(count)]
    lines = [f"{i},{names[i]},{i % 7 + 0.5},{('no', 'yes')[i % 2]}" for i in range(count)]
    path.write_text("\n".join(["row,writer,year,label", *lines]) + "\n")
    return Table(path=str(path), columns=("row",), target="label", normalize=False)


def writers(source: Table, partition: Partition, data: Data) -> list[set[str]]:
    """The writers of each client's rows, by what the file says."""
    lines = Path(source.path).read_text().splitlines()[1:]
    names = [line.split(",")[1] for line in lines]
    inputs = data.splits["train"].inputs[:, 0].long()
    return [{names[i] for i in inputs[partition.rows(c)].tolist()} for c in range(len(partition))]


def test_rows_of_one_writer_belong_to_one_client(tmp_path: Path) -> None:
    source = letters(tmp_path / "a.csv")
    data = load(source, "class")
    partition = make_partition(Column(column="writer"), data, source, None, 0)
    assert is_complete(partition, data.sizes["train"])
    assert writers(source, partition, data) == [{"ann"}, {"ben"}, {"eva"}, {"kai"}]
    assert len(make_partition(Column(column="year"), data, source, None, 0)) == 7


def test_fewer_clients_than_writers_share_them_evenly(tmp_path: Path) -> None:
    source = letters(tmp_path / "a.csv")
    data = load(source, "class")
    alone = make_partition(Column(column="writer"), data, source, None, 0)
    partition = make_partition(Column(column="writer"), data, source, 3, 0)
    assert is_complete(partition, data.sizes["train"])
    assert sorted(map(len, writers(source, partition, data))) == [1, 1, 2]
    # the two smallest go together
    assert int(partition.sizes.max()) == max(int(alone.sizes.max()), int(alone.sizes.sort().values[:2].sum()))


def test_a_bootstrap_keeps_its_rows_with_their_writers(tmp_path: Path) -> None:
    source = replace(letters(tmp_path / "a.csv"), split=Split(bootstrap=0))
    data = load(source, "class")
    partition = make_partition(Column(column="writer"), data, source, None, 0)
    assert is_complete(partition, data.sizes["train"])
    assert all(len(names) == 1 for names in writers(source, partition, data))


FOLDER = {f"{folder}/{letter}.txt": letter for folder, row in (("x", "abcde"), ("y", "fghij")) for letter in row}


def folder_of_texts(path: Path, repeats: int, **fields: object) -> Text:
    for name, letter in FOLDER.items():
        for part in range(repeats):
            file = path / name.replace(".txt", f"/{part}.txt")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(letter * (150 + 37 * part + ord(letter)))
    return Text(path=str(path), context=16, **fields)


def middle_letters(data: Data, rows: torch.Tensor) -> set[str]:
    examples = data.splits["train"]
    inputs, _ = examples.take(examples.addresses(0, None)[rows])
    return {data.preprocess.tokenizer.decode([token])[:1] for token in inputs[:, 8].tolist()} - {""}


@pytest.mark.parametrize(
    "repeats, fields",
    [
        (3, {}),
        (1, {}),
        (3, {"split": Split(folds=3, fold=1)}),
        (1, {"split": Split(folds=3, fold=1)}),
        (3, {"split": Split(bootstrap=1)}),
        (1, {"split": Split(bootstrap=1)}),
        (3, {"tokenizer": BPE(vocab=300)}),
    ],
    ids=["whole", "parts", "folds", "parts-folds", "bootstrap", "parts-bootstrap", "bpe"],
)
def test_a_window_belongs_to_the_document_of_its_middle_token(
    repeats: int, fields: dict[str, object], tmp_path: Path
) -> None:
    source = folder_of_texts(tmp_path, repeats, **fields)
    data = load(source, "token")
    by_file = make_partition(Column(), data, source, None, 0)
    assert is_complete(by_file, data.sizes["train"])
    found = [middle_letters(data, by_file.rows(client)) for client in range(len(by_file))]
    assert all(len(own) == 1 for own in found) and len(found) > 5
    by_folder = make_partition(Column(column="folder"), data, source, None, 0)
    found = [middle_letters(data, by_folder.rows(client)) for client in range(len(by_folder))]
    assert len(found) == 2 and found[0] <= set("abcde") and found[1] <= set("fghij")


def test_records_of_one_author_belong_to_one_client(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    lines = [{"text": "uvwxyz"[i % 6] * 200, "author": "uvwxyz"[i % 6] if i % 6 else 7} for i in range(30)]
    file.write_text("\n\n".join(map(json.dumps, lines)))
    source = Text(path=str(file), context=16, split=WHOLE)
    data = load(source, "token")
    partition = make_partition(Column(column="author"), data, source, None, 0)
    assert [middle_letters(data, partition.rows(c)) for c in range(6)] == [{letter} for letter in "uvwxyz"]
    with pytest.raises(ConfigError, match=r"there is no 'autor' in .*a.jsonl; did you mean 'author'"):
        make_partition(Column(column="autor"), data, source, None, 0)
    file.write_text(file.read_text().replace('"author": "w"', '"name": "w"'))
    with pytest.raises(DataError, match=r"a.jsonl:5: the key 'author' is missing"):
        make_partition(Column(column="author"), data, source, None, 0)


def test_help_topics_are_clients() -> None:
    source = Text(path="bundled:english")
    data = load(source, "token")
    partition = make_partition(Column(), data, source, None, 0)
    assert len(partition) > 40 and is_complete(partition, data.sizes["train"])


def test_packages_of_the_library_are_clients() -> None:
    source = Text(path="bundled:python", limit_bytes=6_000_000)
    data = load(source, "token")
    documents, packages = (len(make_partition(Column(column=c), data, source, None, 0)) for c in (None, "folder"))
    assert 50 < packages < documents - 50


# --- what cannot be ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Dirichlet(alpha=0.0), "alpha must be above 0 and finite, got 0.0"),
        (lambda: Dirichlet(alpha=float("inf")), "alpha must be above 0 and finite, got inf"),
        (lambda: Quantity(alpha=-1.0), "alpha must be above 0"),
        (lambda: Feature(noise=0.0), "noise must be above 0"),
        (lambda: Labels(per_client=0), "per_client must be at least 1, got 0"),
        (lambda: Shards(per_client=-2), "per_client must be at least 1"),
        (lambda: Column(min_size=0), "min_size must be at least 1, got 0"),
        (lambda: IID(min_size=0), "min_size must be at least 1, got 0"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(make: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    "config, clients, words",
    [
        (IID(), 1438, "1438 clients of at least 1 training examples need 1438, there are 1437; lower clients"),
        (Quantity(min_size=30), 50, "50 clients of at least 30 training examples need 1500"),
        (IID(), 0, "clients: must be at least 1, got 0"),
        (IID(), None, "clients: partition.kind iid does not say how many there are; set clients"),
        (Labels(per_client=11), 20, "per_client: 11 labels a client, but there are only 10"),
        (Shards(per_client=100), 20, "20 clients of 100 shards need 2000 training examples, there are 1437"),
        (Column(column="x"), None, "which images do not have"),
    ],
)
def test_what_the_data_does_not_allow_is_refused(config: PartitionConfig, clients: int | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        deal(config, clients=clients)


@pytest.mark.parametrize("config", [Dirichlet(), Labels(), Shards(), Feature()], ids=lambda c: c.kind)
def test_text_has_neither_labels_nor_noise(config: PartitionConfig) -> None:
    source = Text(path="bundled:english", limit_bytes=20_000)
    with pytest.raises(ConfigError, match=f"partition.kind: {config.kind} .* use .*(iid|column)"):
        make_partition(config, load(source, "token"), source, 5, 0)
    assert len(make_partition(IID(), load(source, "token"), source, 5, 0)) == 5


def test_columns_that_cannot_be_clients_are_refused(tmp_path: Path) -> None:
    def refused(config: Column, clients: int | None, words: str, source: DataConfig) -> None:
        with pytest.raises((ConfigError, DataError), match=words):
            make_partition(config, data, source, clients, 0)

    source = letters(tmp_path / "a.csv")
    data = load(source, "class")
    refused(Column(), None, "partition.column: name the column", source)
    refused(Column(column="writr"), None, "there is no column 'writr'; did you mean 'writer'", source)
    refused(Column(column="writer"), 5, "clients: 5 are more than the 4 values of 'writer'", source)
    refused(Column(column="writer", min_size=20), None, r"partition.min_size: '\w+' has \d+ training examples", source)
    Path(source.path).write_text(Path(source.path).read_text().replace("ann", "", 1))
    refused(Column(column="writer"), None, "has changed since it was loaded", source)
    data = load(source, "class")
    refused(Column(column="writer"), None, "row 1, column 'writer': the cell is empty", source)


def test_a_table_of_texts_alone_takes_no_noise(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("city,label\n" + "Ulm,no\nKiel,yes\n" * 20)
    source = Table(path=str(path))
    with pytest.raises(ConfigError, match="feature adds noise to images and to numbers of a table"):
        make_partition(Feature(), load(source, "class"), source, 4, 0)
