"""One rank's share of the data. The batch of a step is a pure function of (seed, step): nothing else is remembered.

Each epoch is cut into global batches of B rows (the last one is shorter); rank r takes its share of each, in order.
All batches of a rank have the same number of rows: what is missing is filled with rows of weight 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from core.data import augment
from core.data.ahead import ahead, faster, in_turn
from core.data.examples import Data, Examples
from core.data.spec import Spec
from core.errors import ConfigError
from core.randomness import example_keys

Batch = dict[str, Tensor]


class Schedule(Protocol):
    """The training numbers that decide which rows a step takes."""

    @property
    def steps(self) -> int: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def accumulate(self) -> int: ...

    @property
    def shards(self) -> int: ...


@dataclass(frozen=True)
class Rows:
    """Which rows of a global batch a rank takes: their positions [R] and weights [R], 0 for those that only fill up.

    `count` are not fill; if all are, they are consecutive from `start`.
    """

    positions: Tensor
    weight: Tensor
    start: int
    count: int

    def of(self, order: Tensor) -> Tensor:
        """The entries of a global batch's `order` [..., B] at these rows; a view where there is no fill."""
        if self.count == len(self.positions):
            return order[..., self.start : self.start + self.count]
        return order[..., self.positions]


def ceil_div(a: int, b: int) -> int:
    """The quotient, rounded up."""
    return -(-a // b)


@lru_cache(maxsize=4096)
def rows_of(size: int, full: int, rank: int, world: int, multiple: int = 1) -> Rows:
    """The rows of `rank` in a global batch of `size`, where full ones have `full`; R is a multiple of `multiple`."""
    share = ceil_div(size, world)
    length = ceil_div(ceil_div(full, world), multiple) * multiple
    start = min(rank * share, size)
    count = min(share, size - start)
    with torch.inference_mode(False):  # what is kept for later may be needed in training
        positions = (torch.arange(length) + start) % size
        return Rows(positions, (torch.arange(length) < count).float(), start, count)


@lru_cache(maxsize=4096)
def rows_of_shards(size: int, full: int, shards: range, of: int, multiple: int = 1) -> Rows:
    """The rows of several of `of` logical shards, one after the other, each as `rows_of` cuts it."""
    each = [rows_of(size, full, shard, of, multiple) for shard in shards]
    with torch.inference_mode(False):
        positions, weight = torch.cat([rows.positions for rows in each]), torch.cat([rows.weight for rows in each])
    return Rows(positions, weight, each[0].start, sum(rows.count for rows in each))


class Shard:
    """Batches for rank `rank` of `world`. Tensors of a batch may be shared with later ones: do not write to them."""

    def __init__(self, data: Data, rank: int, world: int) -> None:
        assert 0 <= rank < world, f"rank {rank} of {world}"
        self.data, self.rank, self.world = data, rank, world
        self._changes = data.augmentation.is_active
        self._orders: dict[int, Tensor] = {}

    @property
    def spec(self) -> Spec:
        """What a model must know."""
        return self.data.spec

    @property
    def sizes(self) -> dict[str, int]:
        """Examples per split, over all ranks."""
        return self.data.sizes

    @property
    def bytes_per_token(self) -> Tensor | None:
        """[V] float64, see `Data.bytes_per_token`."""
        return self.data.bytes_per_token

    @property
    def unit(self) -> float:
        """See `Data.unit`."""
        return self.data.unit

    @property
    def works_ahead(self) -> bool:
        """Whether `batches` prepares all of them on threads, beside the steps."""
        return self._examples("train").is_costly

    def steps_per_epoch(self, train: Schedule) -> int:
        """Global batches in which every training example appears once."""
        return ceil_div(len(self._examples("train")), train.batch_size)

    def batch(self, train: Schedule, step: int, noise: bool = True) -> Batch:
        """This rank's rows of the global batch of `step`; `noise` gives them keys for dropout."""
        examples = self._examples("train")
        order, rows = self._place(examples, train, step)
        if self._changes:
            inputs, targets = self._augmented(examples, order, rows.positions, train.shards // self.world, step)
        else:
            inputs, targets = examples.take(rows.of(order))
        batch = _batch(inputs, targets, _weight(examples, rows, order))
        if noise:
            batch["key"] = example_keys(self.data.seed, step, rows.positions)
        return batch

    def block(self, train: Schedule, steps: range, noise: bool = True) -> Batch:
        """The batches of several steps, each tensor [steps, R, ...]: for many small shards one by one would cost."""
        if self._changes:
            batches = [self.batch(train, step, noise) for step in steps]
            return {name: torch.stack([batch[name] for batch in batches]) for name in batches[0]}
        examples = self._examples("train")
        pieces = list(self._pieces(examples, train, steps))
        addresses = torch.cat([rows.of(order) for order, rows in pieces])
        weight = torch.cat([rows.weight.expand(len(order), -1) for order, rows in pieces])
        if examples.weight is not None:
            weight = weight * examples.weight[addresses]
        inputs, targets = examples.take(addresses.flatten())
        block = _batch(inputs, targets, weight.flatten())
        if noise:
            positions = [rows.positions for order, rows in pieces for _ in order]
            keys = [example_keys(self.data.seed, step, own) for step, own in zip(steps, positions, strict=True)]
            block["key"] = torch.cat(keys)
        return {name: tensor.unflatten(0, (len(steps), -1)) for name, tensor in block.items()}

    def rows(self, train: Schedule) -> int:
        """R, the rows of each batch of this rank."""
        full = min(train.batch_size, len(self._examples("train")))
        return len(self._rows_of(train, full, full).positions)

    def batches(self, train: Schedule, start: int = 0, noise: bool = True) -> Iterator[tuple[int, Batch]]:
        """(step, batch) from step `start` to `train.steps`, prepared on threads where that is faster."""
        way = ahead if self.works_ahead else faster if self._changes else in_turn
        return way(lambda step: self.batch(train, step, noise), range(start, train.steps))

    def held_out(self, split: str, batch_size: int, shards: int = 1) -> Iterator[Batch]:
        """This rank's share of a split in fixed order, in global batches of at most `batch_size` and of equal size.

        `shards`: of each batch, one after the other, as in training. Every rank yields the same number of batches.
        Nothing if the split is empty.
        """
        examples = self._examples(split)
        order = examples.addresses(self.data.seed, None)
        full = ceil_div(len(order), max(ceil_div(len(order), batch_size), 1))
        for chunk in order.split(full) if full else ():
            rows = self._cut(len(chunk), full, shards)
            inputs, targets = examples.take(rows.of(chunk))
            yield _batch(inputs, targets, _weight(examples, rows, chunk))

    def _examples(self, split: str) -> Examples:
        try:
            return self.data.splits[split]
        except KeyError:
            there = ", ".join(name for name, size in self.sizes.items() if size)
            raise ConfigError(f"split: there is no '{split}' split in this data; there is {there}") from None

    def _place(self, examples: Examples, train: Schedule, step: int) -> tuple[Tensor, Rows]:
        """The addresses of the global batch of `step`, and which of them are this rank's."""
        full = min(train.batch_size, len(examples))
        epoch, i = divmod(step, ceil_div(len(examples), full))
        order = self._order(examples, epoch)[i * full : (i + 1) * full]
        return order, self._rows_of(train, len(order), full)

    def _pieces(self, examples: Examples, train: Schedule, steps: range) -> Iterator[tuple[Tensor, Rows]]:
        """(addresses of global batches [steps, B], which of each are this rank's) for stretches of equal batches."""
        full = min(train.batch_size, len(examples))
        whole, rest = divmod(len(examples), full)
        step = steps.start
        while step < steps.stop:
            epoch, i = divmod(step, whole + (rest > 0))
            count, size = (min(steps.stop - step, whole - i), full) if i < whole else (1, rest)
            order = self._order(examples, epoch)[i * full : i * full + count * size]
            yield order.view(count, size), self._rows_of(train, size, full)
            step += count

    def _order(self, examples: Examples, epoch: int) -> Tensor:
        order = self._orders.get(epoch)
        if order is None:
            order = examples.addresses(self.data.seed, epoch)
            # batches are prepared ahead, so the epoch before may still be in use
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1} | {epoch: order}
        return order

    def _rows_of(self, train: Schedule, size: int, full: int) -> Rows:
        return self._cut(size, full, train.shards, train.accumulate)

    def _cut(self, size: int, full: int, shards: int, multiple: int = 1) -> Rows:
        """This rank's rows of a global batch, or of as many logical shards of it as each rank has."""
        if shards == 1:
            return rows_of(size, full, self.rank, self.world, multiple)
        own, rest = divmod(shards, self.world)
        assert not rest, "core.support refuses workers that do not divide the shards"
        return rows_of_shards(size, full, range(self.rank * own, (self.rank + 1) * own), shards, multiple)

    def _augmented(
        self, examples: Examples, order: Tensor, own: Tensor, shards: int, step: int
    ) -> tuple[Tensor, Tensor | None]:
        """Inputs and targets at the positions `own`, each of several shards by itself, so that its bits are its own."""
        if shards > 1:
            parts = [self._augmented(examples, order, part, 1, step) for part in own.tensor_split(shards)]
            inputs, labels = torch.cat([part for part, _ in parts]), [part for _, part in parts if part is not None]
            return inputs, torch.cat(labels) if labels else None
        change, seed = self.data.augmentation, self.data.seed
        if not change.images.mixup:
            inputs, targets = examples.take(order[own])
            return change(inputs, augment.keys(seed, step, own)), targets
        partner, share = augment.mixing(seed, step, len(order), change.images.mixup)
        # a row's changes are those of its position, whoever mixes it in
        needed = torch.cat([own, partner[own]])
        inputs, targets = examples.take(order[needed])
        inputs = change(inputs, augment.keys(seed, step, needed))
        assert targets is not None
        x, other = inputs.tensor_split(2)
        y, other_y = targets.tensor_split(2)
        return augment.blend(x, other, share[own]), change.mix_targets(y, other_y, share[own])


def _weight(examples: Examples, rows: Rows, order: Tensor) -> Tensor:
    if examples.weight is None:
        return rows.weight
    return rows.weight * examples.weight[rows.of(order)]


def _batch(inputs: Tensor, targets: Tensor | None, weight: Tensor) -> Batch:
    batch = {"inputs": inputs, "weight": weight}
    if targets is not None:
        batch["targets"] = targets
    return batch
