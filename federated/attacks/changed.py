"""Views of examples that are changed as they are taken."""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from core.data.examples import Examples
from core.randomness import uniform


class Change(Protocol):
    """What becomes of the examples at `addresses` [B]."""

    def __call__(self, addresses: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Relabeling:
    """labels [C]: the new label of each class."""

    labels: Tensor

    def __call__(self, addresses: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return inputs, self.labels[targets]


@dataclass(frozen=True)
class Trigger:
    """Sets the inputs at `places` [K] (of a flat example) to `values` [K], and the label to `target`, of a share of all
    examples, which their addresses decide."""

    places: Tensor
    values: Tensor
    target: int
    share: float
    seed: int

    def __call__(self, addresses: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        chosen = uniform(addresses + self.seed, 0, 1)[:, 0] < self.share
        marked = inputs.flatten(1).index_copy(1, self.places, self.values.expand(len(inputs), -1)).view_as(inputs)
        shape = (-1, *[1] * (inputs.dim() - 1))
        return torch.where(chosen.view(shape), marked, inputs), targets.masked_fill(chosen, self.target)


@dataclass
class Changed:
    """A view of other examples, which are changed as they are taken. `own`: the addresses of those that are in it."""

    whole: Examples
    change: Change
    own: Tensor | None = None
    weight: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        self.weight = self.whole.weight

    @property
    def is_costly(self) -> bool:
        return self.whole.is_costly

    def __len__(self) -> int:
        return len(self.whole) if self.own is None else len(self.own)

    def addresses(self, seed: int, epoch: int | None) -> Tensor:
        addresses = self.whole.addresses(seed, epoch)
        return addresses if self.own is None else addresses[torch.isin(addresses, self.own)]

    def take(self, addresses: Tensor) -> tuple[Tensor, Tensor | None]:
        inputs, targets = self.whole.take(addresses)
        return self.change(addresses, inputs, targets) if targets is not None else (inputs, None)
