"""The batch of a step is a pure function of (seed, step), and ranks share it without changing it."""

import threading
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.data import Augment, Batch, Data, Image, Preprocess, Shard, Spec, Text, load
from core.data.examples import Stacked
from core.data.preprocess import ImageFit
from core.data.shard import rows_of
from core.errors import ConfigError


@dataclass(frozen=True)
class Numbers:
    """Stands for the training numbers of a recipe."""

    batch_size: int
    steps: int = 1000
    accumulate: int = 1
    shards: int = 1


CONFIGS: dict[str, Any] = {
    "plain": Image(),
    "augmented": Image(augment=Augment(crop=2, flip=True, noise=0.2, cutout=3)),
    "mixed": Image(augment=Augment(crop=1, noise=0.1, mixup=0.4)),
    "text": Text(context=16, limit_bytes=40_000),
    "dropped tokens": Text(context=16, limit_bytes=40_000, token_drop=0.3),
}


@cache
def data(name: str, seed: int = 0) -> Data:
    return load(CONFIGS[name], "token" if isinstance(CONFIGS[name], Text) else "class", seed)


def rows(count: int, weight: Tensor | None = None) -> Data:
    """Examples whose only input is their number."""
    numbers = torch.arange(count)
    stacked = Stacked(numbers.float()[:, None], numbers, weight)
    preprocess = Preprocess(Spec("image", (1,), max(count, 1), "class"), ImageFit((), ()))
    return Data(preprocess, "", {"train": stacked, "test": stacked})


def union(shards: list[Batch]) -> Batch:
    """The rows that count, of all ranks in order."""
    return {name: torch.cat([b[name][b["weight"] > 0] for b in shards]) for name in shards[0]}


def last_step(count: int, batch_size: int) -> int:
    return -(-count // batch_size) - 1


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_fresh_process_gives_the_same_batch(name: str) -> None:
    train = Numbers(50)
    shard = data(name).shard()
    batches = {step: shard.batch(train, step) for step in (0, 1, 40, 7)}
    again = load(CONFIGS[name], data(name).spec.target).shard()
    for step in (7, 40, 0):
        other = again.batch(train, step)
        assert other.keys() == batches[step].keys()
        assert all(torch.equal(other[key], value) for key, value in batches[step].items())
    assert not torch.equal(batches[0]["inputs"], batches[1]["inputs"])


def test_another_seed_gives_another_batch() -> None:
    train = Numbers(50)
    assert not torch.equal(
        data("plain").shard().batch(train, 0)["targets"], data("plain", 1).shard().batch(train, 0)["targets"]
    )


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("ragged", [False, True])
def test_the_ranks_together_have_the_rows_of_one_process(name: str, world: int, ragged: bool) -> None:
    train = Numbers(50)
    step = last_step(data(name).sizes["train"], 50) if ragged else 2
    alone = union([data(name).shard(0, 1).batch(train, step)])
    shards = [data(name).shard(rank, world).batch(train, step) for rank in range(world)]
    assert all(len(batch["inputs"]) == -(-50 // world) for batch in shards)
    assert all(torch.isfinite(batch["inputs"]).all() for batch in shards)
    together = union(shards)
    assert together.keys() == alone.keys()
    assert all(torch.equal(together[key], value) for key, value in alone.items())


@settings(max_examples=80)
@given(st.integers(1, 60), st.integers(1, 25), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2))
def test_every_example_appears_once_per_epoch(count: int, batch: int, world: int, accumulate: int, epoch: int) -> None:
    train, all_data = Numbers(batch, accumulate=accumulate), rows(count)
    shards = [all_data.shard(rank, world) for rank in range(world)]
    steps = shards[0].steps_per_epoch(train)
    seen: list[int] = []
    for step in range(epoch * steps, (epoch + 1) * steps):
        batches = [shard.batch(train, step) for shard in shards]
        sizes = {len(b["weight"]) for b in batches}
        assert len(sizes) == 1 and sizes.pop() % accumulate == 0
        seen += union(batches)["targets"].tolist()
    assert sorted(seen) == list(range(count))


@settings(max_examples=60)
@given(st.integers(1, 60), st.integers(1, 25), st.integers(1, 5))
def test_held_out_rows_come_once_in_order_in_equally_many_batches(count: int, size: int, world: int) -> None:
    parts = [list(rows(count).shard(rank, world).held_out("test", size)) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    assert len({len(batch["weight"]) for part in parts for batch in part}) == 1
    merged = [union(list(step)) for step in zip(*parts, strict=True)]
    assert torch.cat([batch["targets"] for batch in merged]).tolist() == list(range(count))
    assert all("key" not in batch and len(batch["targets"]) <= size for batch in merged)


def test_an_empty_split_has_no_batches_and_an_unknown_one_is_refused() -> None:
    assert list(rows(0).shard().held_out("test", 4)) == []
    with pytest.raises(ConfigError, match="no 'validation' split in this data; there is train, test"):
        list(rows(3).shard().held_out("validation", 4))


def test_epochs_are_shuffled_differently() -> None:
    shard = rows(40).shard()
    assert shard.batch(Numbers(40), 0)["targets"].tolist() != shard.batch(Numbers(40), 1)["targets"].tolist()


def test_a_full_batch_is_not_padded_and_a_short_one_is_with_weight_0() -> None:
    shard = rows(10).shard()
    assert shard.batch(Numbers(4), 0)["weight"].tolist() == [1, 1, 1, 1]
    short = shard.batch(Numbers(4), 2)
    assert short["weight"].tolist() == [1, 1, 0, 0]
    assert short["targets"][2:].tolist() == short["targets"][:2].tolist()


def test_keys_address_positions_of_the_global_batch() -> None:
    train = Numbers(8)
    alone = rows(16).shard().batch(train, 1)["key"]
    halves = [rows(16).shard(rank, 2).batch(train, 1)["key"] for rank in range(2)]
    assert torch.equal(torch.cat(halves), alone) and len(set(alone.tolist())) == 8
    assert not set(alone.tolist()) & set(rows(16).shard().batch(train, 0)["key"].tolist())
    assert "key" not in rows(16).shard().batch(train, 1, noise=False)


def test_example_weights_come_with_their_rows() -> None:
    weighted = rows(6, torch.arange(6) + 0.5)
    batch = weighted.shard(1, 2).batch(Numbers(5), 0)
    assert batch["weight"].tolist() == [*(batch["targets"][:2] + 0.5).tolist(), 0]


@pytest.mark.parametrize("name", ["plain", "mixed"])
def test_batches_go_from_the_given_step_to_the_last(name: str) -> None:
    train = Numbers(50, steps=40)
    shard = data(name).shard()
    for expected, (step, batch) in zip(range(31, 40), shard.batches(train, 31), strict=True):
        assert step == expected
        assert torch.equal(batch["inputs"], shard.batch(train, step)["inputs"])
    assert list(shard.batches(train, 40)) == []


def test_batches_that_take_long_whatever_the_steps_take_are_prepared_ahead_from_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[str] = []
    batch = Shard.batch
    monkeypatch.setattr(Shard, "works_ahead", True)
    monkeypatch.setattr(Shard, "batch", lambda *args: threads.append(threading.current_thread().name) or batch(*args))
    assert len(list(data("plain").shard().batches(Numbers(50, steps=3)))) == 3
    assert all(name.startswith("batches") for name in threads)


@pytest.mark.parametrize("name", ["plain", "augmented", "mixed", "text", "weighted"])
@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("batch_size, accumulate", [(7, 1), (50, 3), (5000, 2)])
def test_logical_shards_are_the_same_whoever_has_them(name: str, world: int, batch_size: int, accumulate: int) -> None:
    source = rows(59, torch.arange(59) / 7) if name == "weighted" else data(name)
    train = Numbers(batch_size, accumulate=accumulate, shards=4)
    whole, ranks = source.shard(), [source.shard(rank, world) for rank in range(world)]
    for step in {0, 1, whole.steps_per_epoch(train) - 1}:
        expected, parts = whole.batch(train, step), [shard.batch(train, step) for shard in ranks]
        assert all(torch.equal(torch.cat([p[key] for p in parts]), value) for key, value in expected.items())
        plain = whole.batch(Numbers(batch_size), step)
        assert expected["weight"].sum() == pytest.approx(plain["weight"].sum())
        if name != "weighted":
            kept, all_rows = expected["weight"] > 0, plain["weight"] > 0
            assert torch.equal(expected["key"][kept], plain["key"][all_rows])
            assert expected["inputs"][kept].allclose(plain["inputs"][all_rows])
    for expected, *held in zip(
        whole.held_out("train", 30, 4), *(shard.held_out("train", 30, 4) for shard in ranks), strict=True
    ):
        assert all(torch.equal(torch.cat([part[key] for part in held]), value) for key, value in expected.items())


def test_held_out_rows_are_never_augmented() -> None:
    for plain, mixed in zip(
        data("plain").shard().held_out("test", 64), data("mixed").shard().held_out("test", 64), strict=True
    ):
        assert all(torch.equal(plain[key], value) for key, value in mixed.items())


def test_numbers_may_be_any_object_with_these_fields() -> None:
    train = replace(Numbers(4), accumulate=3)
    assert len(rows(10).shard().batch(train, 0)["weight"]) == 6


@pytest.mark.parametrize("name", ["plain", "augmented", "mixed", "text", "weighted"])
@pytest.mark.parametrize("batch_size, accumulate, shards", [(7, 1, 1), (50, 3, 1), (5000, 2, 1), (50, 3, 4)])
def test_a_block_of_steps_holds_the_batches_of_each(name: str, batch_size: int, accumulate: int, shards: int) -> None:
    source = rows(60, torch.arange(60) / 7) if name == "weighted" else data(name)
    train, steps = Numbers(batch_size, accumulate=accumulate, shards=shards), range(3, 31)
    for rank, world in ((0, 1), (1, 3 if shards == 1 else 2)):
        for noise in (True, False):
            shard, fresh = source.shard(rank, world), source.shard(rank, world)
            block = shard.block(train, steps, noise)
            assert block["weight"].shape == (len(steps), shard.rows(train))
            for i, step in enumerate(steps):
                batch = fresh.batch(train, step, noise)
                assert batch.keys() == block.keys()
                assert all(torch.equal(batch[key], block[key][i]) for key in batch)


def test_rows_made_while_nothing_is_learned_can_be_trained_on_later() -> None:
    with torch.inference_mode():
        kept = rows_of(7, 9, 1, 3)
    assert not kept.weight.is_inference() and rows_of(7, 9, 1, 3) is kept
