"""Attackers that poison the data they train on: other labels, or a trigger that a model is to learn."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from core.data import Data, Preprocess, Spec
from core.data.examples import Examples
from core.data.preprocess import ImageFit, Number, TableFit
from core.data.sources.files import nearest
from core.errors import ConfigError
from core.randomness import seed_of
from federated.attacks.attack import Attack
from federated.attacks.changed import Changed, Relabeling, Trigger

BLOCK = 1024  # examples whose labels are read at once


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
        at += feature.width
    if len(places) < len(columns):
        numbers = [feature.name for feature in fitted.features if isinstance(feature, Number)]
        name = next(name for name in columns if name not in numbers)
        raise ConfigError(f"attack.columns: there is no column of numbers '{name}'; {nearest(name, numbers)}")
    return torch.tensor(places), torch.tensor(values)
