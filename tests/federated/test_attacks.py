"""Attacks: who attacks, what is sent and trained on instead, by hand; and that they work on a plain mean."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from core.config import dump, override, parse
from core.data import Data, Image, Split, Table, load
from core.data.examples import Stacked
from core.data.preprocess import Number, TableFit
from core.errors import ConfigError
from core.randomness import generator
from core.recipe import Training
from federated.attacks import (
    AttackConfig,
    Backdoor,
    Gaussian,
    InnerProduct,
    LabelFlip,
    LittleIsEnough,
    SignFlip,
    largest_z,
)

ATTACKS = [LabelFlip, Backdoor, SignFlip, Gaussian, LittleIsEnough, InnerProduct]
every_attack = pytest.mark.parametrize("attack", ATTACKS)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator("attacks"))


@pytest.fixture(scope="module")
def digits() -> Data:
    return load(Image(path="bundled:digits"), "class", seed=0)


@pytest.fixture(scope="module")
def wine() -> Data:
    return load(Table(path="bundled:wine"), "class", seed=0)


def everything(data: Data, split: str) -> tuple[Tensor, Tensor, Tensor]:
    """The addresses, inputs and targets of a whole split in its fixed order."""
    addresses = data.splits[split].addresses(0, None)
    inputs, targets = data.splits[split].take(addresses)
    assert targets is not None
    return addresses, inputs, targets


# --- who attacks ---------------------------------------------------------------------------------------------------


@every_attack
@pytest.mark.parametrize(
    "share, clients", [(0.0, 10), (0.2, 10), (0.25, 10), (0.28, 10), (0.33, 100), (1.0, 7), (0.1, 100_000)]
)
def test_exactly_the_share_of_all_clients_attacks(attack: type[AttackConfig], share: float, clients: int) -> None:
    config = attack(share=share)
    hostile = [client for client in range(clients) if config.is_attacker(client, clients, seed=3)]
    assert len(hostile) == round(share * clients)
    assert config.attackers(clients, 3) == set(hostile)


def test_who_attacks_is_decided_by_the_seed_and_a_larger_share_adds_to_a_smaller() -> None:
    few, many = SignFlip(share=0.1), Gaussian(share=0.3)
    assert few.attackers(100, 5) == SignFlip(share=0.1).attackers(100, 5)
    assert few.attackers(100, 5) != few.attackers(100, 6)
    assert few.attackers(100, 5) < many.attackers(100, 5)


def test_named_clients_attack_and_nobody_else() -> None:
    config = SignFlip(share=0.9, clients=(3, 7))
    assert [client for client in range(10) if config.is_attacker(client, 10, seed=0)] == [3, 7]


def test_a_client_that_is_not_there_is_refused(digits: Data) -> None:
    SignFlip(clients=(9,)).require(digits.preprocess, 10)
    with pytest.raises(ConfigError, match=r"attack\.clients: there is no client 10"):
        SignFlip(clients=(3, 10)).require(digits.preprocess, 10)


# --- what is sent --------------------------------------------------------------------------------------------------


def test_a_sign_flip_sends_the_scaled_opposite() -> None:
    assert torch.equal(SignFlip(scale=2.0).forge(torch.tensor([1.0, -3.0]), 0), torch.tensor([-2.0, 6.0]))


def test_gaussian_noise_replaces_the_update_and_is_addressed() -> None:
    update = torch.full((10_000,), 7.0)
    sent = Gaussian(std=3.0).forge(update, 0, "forge", 4, 1)
    assert float(sent.mean()) == pytest.approx(0.0, abs=0.15) and float(sent.std()) == pytest.approx(3.0, rel=0.03)
    assert torch.equal(sent, Gaussian(std=3.0).forge(update, 0, "forge", 4, 1))
    assert not torch.equal(sent, Gaussian(std=3.0).forge(update, 0, "forge", 4, 2))


def test_alie_lies_z_standard_deviations_below_the_honest_mean() -> None:
    honest = torch.tensor([[1.0, 0.0], [3.0, 0.0], [5.0, 0.0], [7.0, 4.0]])  # means 4 and 1; variances 5 and 3
    sent = LittleIsEnough(z=1.5).forge_together(honest, len(honest), 2)
    assert torch.allclose(sent, torch.tensor([4 - 1.5 * math.sqrt(5), 1 - 1.5 * math.sqrt(3)]))


@pytest.mark.parametrize(
    "clients, attackers, share",
    # s = 26 - 24 = 2 of 26 honest ones must lie further out: the paper's example; 51 - 20 = 31 of 80; 6 - 4 = 2 of 6
    [(50, 24, 24 / 26), (100, 20, 49 / 80), (10, 4, 4 / 6)],
)
def test_z_leaves_as_many_honest_clients_outside_as_lack_for_a_majority(
    clients: int, attackers: int, share: float
) -> None:
    z = largest_z(clients, attackers)
    assert 0.5 * (1 + math.erf(z / math.sqrt(2))) == pytest.approx(share)
    honest = normal(clients - attackers, 3)
    mean, std = honest.mean(0), honest.std(0, correction=0)
    assert torch.allclose(LittleIsEnough().forge_together(honest, len(honest), attackers), mean - z * std, atol=1e-6)


def test_z_of_the_papers_example_is_one_point_four_three() -> None:
    assert largest_z(50, 24) == pytest.approx(1.43, abs=0.005)


@pytest.mark.parametrize("clients, attackers, z", [(10, 1, 0.0), (3, 2, 3.09)])
def test_z_is_bounded_where_attackers_are_too_few_or_a_majority(clients: int, attackers: int, z: float) -> None:
    assert largest_z(clients, attackers) == pytest.approx(z, abs=0.01)


def test_inner_product_manipulation_turns_the_honest_mean_around() -> None:
    honest = normal(8, 50) + 1
    sent = InnerProduct(epsilon=6.0).forge_together(honest, len(honest), 2)
    assert torch.allclose(sent, -6 * honest.mean(0))
    # 8 honest and 2 with epsilon 6: (8 - 12) / 10 of the honest mean, so their inner product is negative
    assert torch.allclose(torch.cat([honest, sent.expand(2, -1)]).mean(0), -0.4 * honest.mean(0), atol=1e-6)


@every_attack
def test_an_attack_changes_either_data_or_ones_own_update_or_all_updates(
    attack: type[AttackConfig], digits: Data
) -> None:
    config, update = attack(), normal(5)
    poisons = config.poison(digits, 0, 1) is not digits
    forges = not torch.equal(config.forge(update, 0, 1), update)
    assert [poisons, forges, config.is_colluding].count(True) == 1
    if not config.is_colluding:
        with pytest.raises(NotImplementedError):
            config.forge_together(update[None], 1, 1)


# --- what is trained on --------------------------------------------------------------------------------------------


def test_a_label_flip_mirrors_the_classes_of_the_training_split_alone(digits: Data) -> None:
    poisoned = LabelFlip().poison(digits, 0, 3)
    addresses, inputs, targets = everything(digits, "train")
    new_addresses, new_inputs, new_targets = everything(poisoned, "train")
    assert torch.equal(addresses, new_addresses) and torch.equal(inputs, new_inputs)
    assert torch.equal(new_targets, 9 - targets)
    assert all(poisoned.splits[name] is digits.splits[name] for name in ("validation", "test"))
    assert torch.equal(everything(digits, "train")[2], targets)


def test_a_label_flip_of_one_class_leaves_the_others(digits: Data) -> None:
    targets, changed = (everything(data, "train")[2] for data in (digits, LabelFlip(source=7, target=1).poison(digits)))
    assert torch.equal(changed, torch.where(targets == 7, 1, targets))


def test_a_backdoor_marks_its_share_of_images_and_leaves_the_rest(digits: Data) -> None:
    attack = Backdoor(target=4, poisoned=0.25, size=2)
    poisoned = attack.poison(digits, 0, 3)
    _, inputs, targets = everything(digits, "train")
    _, changed, labels = everything(poisoned, "train")
    marked = (changed != inputs).flatten(1).any(dim=1) | (labels != targets)
    assert float(marked.double().mean()) == pytest.approx(0.25, abs=0.04)
    mean, std = digits.preprocess.fitted.mean[0], digits.preprocess.fitted.std[0]  # type: ignore[union-attr]
    assert torch.allclose(changed[marked][:, 0, -2:, -2:], torch.tensor((1 - mean) / std))  # white: the pixel 16 of 16
    assert (labels[marked] == 4).all()
    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[-2:, -2:] = False
    assert torch.equal(changed[:, :, outside], inputs[:, :, outside])
    assert torch.equal(changed[~marked], inputs[~marked]) and torch.equal(labels[~marked], targets[~marked])
    assert all(poisoned.splits[name] is digits.splits[name] for name in ("validation", "test"))


def test_which_examples_are_marked_depends_on_the_key_and_not_on_how_they_are_taken(digits: Data) -> None:
    attack = Backdoor(poisoned=0.5)
    examples = attack.poison(digits, 0, 3).splits["train"]
    order = examples.addresses(1, 0)
    whole, labels = examples.take(order)
    parts = [examples.take(part) for part in order.split(100)]
    assert torch.equal(torch.cat([inputs for inputs, _ in parts]), whole)
    assert not torch.equal(attack.poison(digits, 0, 4).splits["train"].take(order)[1], labels)


def test_batches_of_poisoned_data_are_those_of_the_shard(digits: Data) -> None:
    train = Training(steps=10, batch_size=32)
    clean, poisoned = digits.shard(), LabelFlip().poison(digits).shard()
    assert poisoned.steps_per_epoch(train) == clean.steps_per_epoch(train)
    for step in range(3):
        ours, theirs = poisoned.batch(train, step), clean.batch(train, step)
        assert torch.equal(ours["inputs"], theirs["inputs"]) and torch.equal(ours["targets"], 9 - theirs["targets"])
    assert torch.equal(poisoned.block(train, range(3))["targets"][1], poisoned.batch(train, 1)["targets"])


def test_example_weights_stay_with_their_examples() -> None:
    examples = Stacked(normal(6, 1, 4, 4), torch.arange(6) % 3, weight=torch.arange(6.0))
    image = load(Image(path="bundled:digits"), "class", seed=0)
    data = replace(image, splits={"train": examples, "validation": examples, "test": examples}, rows=None)
    spec = replace(image.spec, shape=(1, 4, 4), outputs=3, classes=("0", "1", "2"))
    data = replace(data, preprocess=replace(image.preprocess, spec=spec))
    triggered = Backdoor(target=0).triggered(data).splits["test"]
    assert triggered.weight is not None
    assert triggered.weight[triggered.addresses(0, None)].tolist() == [1.0, 2.0, 4.0, 5.0]


def test_the_trigger_of_a_table_is_in_the_units_of_its_columns(wine: Data) -> None:
    attack = Backdoor(target=2, poisoned=1.0, columns={"alcohol": 20.0, "hue": 0.0})
    attack.require(wine.preprocess, 5)
    _, inputs, _ = everything(wine, "train")
    _, changed, labels = everything(attack.poison(wine, 0), "train")
    fitted = wine.preprocess.fitted
    assert isinstance(fitted, TableFit) and (labels == 2).all()
    for i, feature in enumerate(fitted.features):
        assert isinstance(feature, Number)
        expected = (
            (attack.columns[feature.name] - feature.mean) / feature.std if feature.name in attack.columns else None
        )
        assert torch.equal(changed[:, i], inputs[:, i] if expected is None else torch.full((len(inputs),), expected))


def test_the_trigger_finds_its_column_behind_texts_that_take_several_inputs(tmp_path) -> None:
    rows = [f"{color},{i / 2},{i % 3}" for i, color in enumerate(["red", "green", "blue"] * 6)]
    (tmp_path / "t.csv").write_text("\n".join(["color,size,label", *rows]))
    split = Split(validation=0.0, test=0.2)
    data = load(Table(path=str(tmp_path / "t.csv"), target="label", split=split), "class")
    _, inputs, _ = everything(data, "train")
    _, changed, _ = everything(Backdoor(poisoned=1.0, columns={"size": 100.0}).poison(data), "train")
    assert torch.equal(changed[:, :3], inputs[:, :3]) and (changed[:, 3] > 10).all()
    with pytest.raises(ConfigError, match="no column of numbers 'color'; there are size"):
        Backdoor(columns={"color": 1.0}).require(data.preprocess, 2)


def test_triggered_holds_the_held_out_examples_of_other_classes_with_the_targets_label(digits: Data) -> None:
    triggered = Backdoor(target=3, poisoned=0.1).triggered(digits)
    for split in ("validation", "test"):
        _, inputs, targets = everything(digits, split)
        _, changed, labels = everything(triggered, split)
        others = inputs[targets != 3]
        assert len(triggered.splits[split]) == len(changed) == len(others) > 0
        assert (labels == 3).all() and (changed[:, :, -3:, -3:] == changed.max()).all()
        assert torch.equal(changed[:, :, :5], others[:, :, :5])
    assert triggered.splits["train"] is digits.splits["train"]
    batches = list(triggered.shard().held_out("test", 64))
    assert sum(int((batch["weight"] > 0).sum()) for batch in batches) == triggered.sizes["test"]


# --- they work on a plain mean -------------------------------------------------------------------------------------


def client_of(data: Data, client: int, clients: int) -> Data:
    inputs, targets = everything(data, "train")[1:]
    return replace(data, splits={**data.splits, "train": Stacked(inputs[client::clients], targets[client::clients])})


def trained(weights: Tensor, data: Data) -> Tensor:
    """Softmax regression on a client's data: 20 steps of plain gradient descent by the formula."""
    _, inputs, targets = everything(data, "train")
    x, y = inputs.flatten(1), torch.nn.functional.one_hot(targets, 10).float()
    for _ in range(20):
        weights = weights - 0.1 * x.T @ ((x @ weights).softmax(dim=1) - y) / len(x)
    return weights


def accuracy(weights: Tensor, data: Data) -> float:
    _, inputs, targets = everything(data, "test")
    return float(((inputs.flatten(1) @ weights).argmax(dim=1) == targets).double().mean())


def federated(data: Data, attack: AttackConfig | None) -> Tensor:
    """FedAvg of 10 clients over 10 rounds."""
    weights = torch.zeros(64, 10)
    for _ in range(10):
        updates = []
        for client in range(10):
            own = client_of(data, client, 10)
            is_hostile = attack is not None and attack.is_attacker(client, 10, seed=0)
            updates.append(trained(weights, attack.poison(own, 0, client) if attack and is_hostile else own) - weights)
        weights = weights + torch.stack(updates).mean(0)
    return weights


def test_a_plain_mean_follows_a_majority_of_flipped_labels_and_keeps_a_backdoor(digits: Data) -> None:
    honest = federated(digits, None)
    assert accuracy(honest, digits) > 0.9
    assert accuracy(federated(digits, LabelFlip(share=0.6)), digits) < 0.5
    attack = Backdoor(share=0.3, target=0)
    backdoored, triggered = federated(digits, attack), attack.triggered(digits)
    assert accuracy(honest, triggered) < 0.1
    assert accuracy(backdoored, triggered) > 0.8 and accuracy(backdoored, digits) > 0.85


# --- configs -------------------------------------------------------------------------------------------------------


@every_attack
def test_an_attacks_config_survives_a_file(attack: type[AttackConfig]) -> None:
    config = attack(share=0.5, clients=(1, 2))
    assert parse(attack, dump(config)) == config
    assert next(iter(dump(config))) == "kind" and dump(config)["kind"] == config.kind
    assert parse(Backdoor, {"columns": {"hue": 2}}).columns == {"hue": 2}


@pytest.mark.parametrize(
    "attack, key, value, words",
    [
        (SignFlip, "share", 1.5, "share: must be between 0 and 1"),
        (SignFlip, "clients", [-1], "clients: must be 0 or more"),
        (SignFlip, "scale", 0.0, "scale: must be above 0"),
        (Gaussian, "std", 0.0, "std: must be above 0"),
        (InnerProduct, "epsilon", 0.0, "epsilon: must be above 0"),
        (LabelFlip, "source", 2, "target: must be given with source"),
        (Backdoor, "poisoned", 0.0, "poisoned: must be above 0 and at most 1"),
        (Backdoor, "size", 0, "size: must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(attack: type[AttackConfig], key: str, value: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        override(attack(), {key: value})


def test_a_class_does_not_become_itself() -> None:
    with pytest.raises(ValueError, match="target must be another class"):
        LabelFlip(source=2, target=2)


@pytest.mark.parametrize(
    "attack, words",
    [
        (LabelFlip(source=3, target=10), r"attack\.target: there is no class 10; they are numbered 0 to 9"),
        (LabelFlip(source=-1, target=1), r"attack\.source: there is no class -1"),
        (Backdoor(target=10), r"attack\.target: there is no class 10"),
        (Backdoor(size=9), r"attack\.size: images have 8x8 pixels, got 9"),
    ],
)
def test_an_attack_that_does_not_go_with_the_images_is_refused(digits: Data, attack: AttackConfig, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        attack.require(digits.preprocess, 10)


def test_an_attack_that_does_not_go_with_the_table_is_refused(wine: Data) -> None:
    with pytest.raises(ConfigError, match=r"attack\.columns: name the columns"):
        Backdoor().require(wine.preprocess, 10)
    with pytest.raises(ConfigError, match="no column of numbers 'hues'; did you mean 'hue'"):
        Backdoor(columns={"hues": 1.0}).require(wine.preprocess, 10)
    with pytest.raises(ConfigError, match=r"attack\.kind: label_flip needs data with classes, these have real targets"):
        LabelFlip().require(replace(wine.preprocess, spec=replace(wine.spec, target="real")), 10)
