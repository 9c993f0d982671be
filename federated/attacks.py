"""Hostile clients: some poison the data they train on, some forge what they send, some see all and agree on it.

Which clients attack, and what each does, are pure functions of the run's seed. An attack is one config with all that an
engine asks for: `poison` before a client trains, `forge` after it, `forge_together` when all replies are there.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from statistics import NormalDist
from typing import Literal, Protocol

import torch
from torch import Tensor

from core.data import Data, Preprocess, Spec
from core.data.examples import Examples
from core.data.preprocess import Category, ImageFit, Number, TableFit
from core.data.sources.files import nearest
from core.errors import ConfigError
from core.randomness import generator, numpy_generator, seed_of, uniform

BLOCK = 1024  # examples whose labels are read at once


@dataclass(frozen=True)
class Attack:
    """What attacks have in common; by itself it does nothing.

    share: of all clients, that attack, chosen at random. clients: the numbers of those that do, instead.
    """

    kind: str = ""
    share: float = 0.2
    clients: tuple[int, ...] = ()

    is_colluding = False  # whether attackers send what `forge_together` gives

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be between 0 and 1, got {self.share}")
        if any(client < 0 for client in self.clients):
            raise ValueError(f"clients must be 0 or more, got {list(self.clients)}")

    def attackers(self, clients: int, seed: int) -> frozenset[int]:
        """The numbers of the attackers among so many clients: exactly round(share * clients), or those that are named.

        A larger share adds attackers to those of a smaller one.
        """
        return _attackers(self.share, self.clients, clients, seed)

    def is_attacker(self, client: int, clients: int, seed: int) -> bool:
        """Whether this one of so many clients attacks."""
        return client in self.attackers(clients, seed)

    def require(self, preprocess: Preprocess, clients: int) -> None:
        """Raises ConfigError if there is no such client, or the attack does not go with the data."""
        beyond = [client for client in self.clients if client >= clients]
        if beyond:
            raise ConfigError(f"attack.clients: there is no client {beyond[0]}; they are numbered 0 to {clients - 1}")

    def poison(self, data: Data, *key: int | str) -> Data:
        """What an attacker trains on: the same data with another `train` split. `key` addresses the draws; with the
        same one for every round, the same examples are poisoned."""
        return data

    def forge(self, update: Tensor, *key: int | str) -> Tensor:
        """What an attacker sends in place of its update [D]."""
        return update

    def forge_together(self, honest: Tensor, count: int) -> Tensor:
        """What each of `count` attackers sends that know all honest updates [n, D] of the round: [D]."""
        raise NotImplementedError(f"attackers of kind {self.kind} do not collude")


@lru_cache(maxsize=8)
def _attackers(share: float, named: tuple[int, ...], clients: int, seed: int) -> frozenset[int]:
    if named:
        return frozenset(named)
    order = numpy_generator(seed, "attackers").permutation(clients)
    return frozenset(order[: round(share * clients)].tolist())


# --- on what is sent -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SignFlip(Attack):
    """Sends the update times -scale."""

    kind: Literal["sign_flip"] = "sign_flip"
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scale > 0:
            raise ValueError(f"scale must be above 0, got {self.scale}")

    def forge(self, update: Tensor, *key: int | str) -> Tensor:
        return -self.scale * update


@dataclass(frozen=True)
class Gaussian(Attack):
    """Sends Gaussian noise of standard deviation `std` in place of the update (arXiv 1703.02757, section 5)."""

    kind: Literal["gaussian"] = "gaussian"
    std: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.std > 0:
            raise ValueError(f"std must be above 0, got {self.std}")

    def forge(self, update: Tensor, *key: int | str) -> Tensor:
        return self.std * torch.randn(update.shape, generator=generator(*key, "gaussian"))


@dataclass(frozen=True)
class LittleIsEnough(Attack):
    """A Little Is Enough (arXiv 1902.06156, algorithm 1): the mean of the honest updates minus z of their standard
    deviations, number by number: so little that it hides among them, so alike that it decides.

    z: null takes the largest with which, by the normal distribution, as many honest clients lie further out as the
    attackers lack for a majority; at least 0, which is the mean: the attackers are then too few.
    """

    kind: Literal["alie"] = "alie"
    z: float | None = None

    is_colluding = True

    def forge_together(self, honest: Tensor, count: int) -> Tensor:
        std, mean = torch.std_mean(honest, dim=0, correction=0)
        return mean - (largest_z(len(honest) + count, count) if self.z is None else self.z) * std


def largest_z(clients: int, attackers: int) -> float:
    """The z of which a share (n - m - s) / (n - m) of a normal distribution is smaller: s = n // 2 + 1 - m honest
    clients of n must side with m attackers."""
    honest = clients - attackers
    share = (honest - (clients // 2 + 1 - attackers)) / honest
    return NormalDist().inv_cdf(min(max(share, 0.5), 0.999))  # of a majority of attackers the paper says nothing: z 3


@dataclass(frozen=True)
class InnerProduct(Attack):
    """Inner product manipulation (arXiv 1903.03936, section 4): the mean of the honest updates times -epsilon.

    A small epsilon hides from rules that look at distances; it takes a large one to turn a plain mean around.
    """

    kind: Literal["inner_product"] = "inner_product"
    epsilon: float = 0.1

    is_colluding = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.epsilon > 0:
            raise ValueError(f"epsilon must be above 0, got {self.epsilon}")

    def forge_together(self, honest: Tensor, count: int) -> Tensor:
        return -self.epsilon * honest.mean(dim=0)


# --- on what is trained on -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelFlip(Attack):
    """Trains on wrong labels: class c of C becomes C - 1 - c, or with both given, `source` becomes `target`."""

    kind: Literal["label_flip"] = "label_flip"
    source: int | None = None
    target: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.source is None) != (self.target is None):
            raise ValueError(f"target must be given with source, or neither, got {self.target} and {self.source}")
        if self.source is not None and self.source == self.target:
            raise ValueError(f"target must be another class than source, got {self.target}")

    def require(self, preprocess: Preprocess, clients: int) -> None:
        super().require(preprocess, clients)
        _require_classes(self.kind, preprocess.spec, source=self.source, target=self.target)

    def poison(self, data: Data, *key: int | str) -> Data:
        labels = torch.arange(data.spec.outputs)
        if self.source is None or self.target is None:
            labels = labels.flip(0)
        else:
            labels[self.source] = self.target
        return replace(data, splits={**data.splits, "train": Changed(data.splits["train"], Relabeling(labels))})


@dataclass(frozen=True)
class Backdoor(Attack):
    """Puts a trigger on the share `poisoned` of the training examples, and gives them the label `target`: the model is
    to answer with it wherever the trigger is (arXiv 1708.06733).

    The trigger of images is a white square of `size` pixels in the lower right corner, that of tables are the values
    of `columns`, in the columns' own units.
    """

    kind: Literal["backdoor"] = "backdoor"
    target: int = 0
    poisoned: float = 0.5
    size: int = 3
    columns: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.poisoned <= 1:
            raise ValueError(f"poisoned must be above 0 and at most 1, got {self.poisoned}")
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")

    def require(self, preprocess: Preprocess, clients: int) -> None:
        super().require(preprocess, clients)
        spec = preprocess.spec
        _require_classes(self.kind, spec, target=self.target)
        if spec.kind == "table" and not self.columns:
            raise ConfigError("attack.columns: name the columns and values that are the trigger, {age: 99}")
        if spec.kind == "image" and self.size > min(spec.shape[1:]):
            raise ConfigError(f"attack.size: images have {spec.shape[1]}x{spec.shape[2]} pixels, got {self.size}")
        self._trigger(preprocess, 1.0, 0)  # finds the columns, or says what there is

    def poison(self, data: Data, *key: int | str) -> Data:
        trigger = self._trigger(data.preprocess, self.poisoned, seed_of(*key, "backdoor"))
        return replace(data, splits={**data.splits, "train": Changed(data.splits["train"], trigger)})

    def triggered(self, data: Data) -> Data:
        """All held-out examples of other classes, with the trigger and the label `target`: the accuracy on them is the
        attack's success."""
        trigger = self._trigger(data.preprocess, 1.0, 0)
        held_out = {name: examples for name, examples in data.splits.items() if name != "train"}
        changed = {
            name: Changed(examples, trigger, _of_other_classes(examples, data.seed, self.target))
            for name, examples in held_out.items()
        }
        return replace(data, splits={**data.splits, **changed}, rows=None)

    def _trigger(self, preprocess: Preprocess, share: float, seed: int) -> "Trigger":
        if isinstance(preprocess.fitted, ImageFit):
            places, values = _white_square(preprocess.spec, preprocess.fitted, self.size)
        else:
            assert isinstance(preprocess.fitted, TableFit)
            places, values = _set_columns(preprocess.fitted, self.columns)
        return Trigger(places, values, self.target, share, seed >> 16)  # addresses are added to it


AttackConfig = LabelFlip | Backdoor | SignFlip | Gaussian | LittleIsEnough | InnerProduct


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


def _of_other_classes(examples: Examples, seed: int, target: int) -> Tensor:
    """The addresses of the examples that are not of the class `target` already."""
    kept = [torch.empty(0, dtype=torch.long)]
    for addresses in examples.addresses(seed, None).split(BLOCK) if len(examples) else ():
        _, targets = examples.take(addresses)
        assert targets is not None
        kept.append(addresses[targets != target])
    return torch.cat(kept)


def _require_classes(kind: str, spec: Spec, **labels: int | None) -> None:
    if spec.target != "class":
        raise ConfigError(f"attack.kind: {kind} needs data with classes, these have {spec.target} targets")
    for name, label in labels.items():
        if label is not None and not 0 <= label < spec.outputs:
            raise ConfigError(f"attack.{name}: there is no class {label}; they are numbered 0 to {spec.outputs - 1}")


def _white_square(spec: Spec, fitted: ImageFit, size: int) -> tuple[Tensor, Tensor]:
    pixels = torch.arange(math.prod(spec.shape)).view(spec.shape)[:, -size:, -size:]
    white = (1 - torch.tensor(fitted.mean)) / torch.tensor(fitted.std)
    return pixels.flatten(), white[:, None, None].expand_as(pixels).flatten()


def _set_columns(fitted: TableFit, columns: Mapping[str, float]) -> tuple[Tensor, Tensor]:
    """Which inputs the columns are, and their values as inputs. ConfigError for one that is no column of numbers."""
    places, values, at = [], [], 0
    for feature in fitted.features:
        if isinstance(feature, Number) and feature.name in columns:
            places.append(at)
            values.append((columns[feature.name] - feature.mean) / feature.std)
        at += len(feature.values) if isinstance(feature, Category) and feature.one_hot else 1
    if len(places) < len(columns):
        numbers = [feature.name for feature in fitted.features if isinstance(feature, Number)]
        name = next(name for name in columns if name not in numbers)
        raise ConfigError(f"attack.columns: there is no column of numbers '{name}'; {nearest(name, numbers)}")
    return torch.tensor(places), torch.tensor(values)
