"""A panel: models that are asked about the same rows, each with the rows prepared in its own way.

`panels_of(models)` are those rows that a model never saw, `panel_on(models, ...)` is other data. Members of one fold
share a panel; those of another fold have their own test split, and so a panel of their own.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from core.config import override
from core.data import Data, DataConfig, Preprocess, Spec, Trained, load, open_with
from core.data.config import Split
from core.data.preprocess import ImageFit, TableFit
from core.ensemble.voices import PLAIN, Mean, MonteCarlo, mean_of, voices
from core.errors import DataError
from core.recipe import Recipe
from core.storage.artifact import Model
from core.task import Batch


@dataclass(frozen=True)
class Panel:
    """models, and for each of them the data, all with the same rows in the split `split` of `source`.

    Real values are averaged as they come out of `reference`'s standardization: a fold has a mean and scale of its own.
    """

    models: tuple[Model, ...]
    data: tuple[Data, ...]
    split: str
    source: str
    reference: Preprocess

    @property
    def examples(self) -> int:
        """How many rows there are."""
        return self.data[0].sizes[self.split]

    @property
    def unit(self) -> float:
        """What 1 in the reference's standardization is of the target's own units."""
        return _standardization(self.reference)[1]

    def batches(self, device: torch.device) -> Iterator[tuple[int, tuple[Batch, ...]]]:
        """(position of the first row, the same rows as each model takes them), in fixed order, on the device."""
        different = {id(data): data for data in self.data}
        size, start = self.models[0].recipe.train.evaluate_batch, 0
        for found in zip(*(data.shard().held_out(self.split, size) for data in different.values()), strict=True):
            moved = [{name: tensor.to(device) for name, tensor in batch.items()} for batch in found]
            by_data = dict(zip(different, moved, strict=True))
            yield start, tuple(by_data[id(data)] for data in self.data)
            start += len(found[0]["weight"])

    def speak(self, i: int, inputs: Tensor, start: int, passes: MonteCarlo = PLAIN) -> Iterator[Tensor]:
        """What model i says, once per pass, in its own standardization."""
        return voices(self.models[i].task.network, inputs, start, i, passes)

    def ask(self, batches: Sequence[Batch], start: int, passes: MonteCarlo = PLAIN) -> Mean:
        """What all say together about one batch."""
        mean = mean_of(self.models[0].spec.target)
        for i, batch in enumerate(batches):
            for outputs in self.speak(i, batch["inputs"], start, passes):
                mean.add(self.in_common(i, outputs))
        return mean

    def in_common(self, i: int, values: Tensor) -> Tensor:
        """Values of model i in the reference's standardization; other outputs than real values as they are."""
        (own_mean, own_std), (mean, std) = _standardization(self.models[i].preprocess), _standardization(self.reference)
        if (own_mean, own_std) == (mean, std):
            return values
        return (values.double() * (own_std / std) + (own_mean - mean) / std).to(values.dtype)

    def to(self, device: torch.device) -> "Panel":
        """The same, with the networks on the device and in evaluation mode."""
        for model in self.models:
            model.task.to(device).eval()
        return self


def panels_of(models: Sequence[Model]) -> tuple[Panel, ...]:
    """Each model among those that never saw the same rows: their test split, or validation where there is no test.

    Raises DataError if nothing was held out, the data is not what it was, or the models do not go together.
    """
    require_alike(models, tokens=False)
    groups: dict[DataConfig, list[Model]] = {}
    for model in models:
        groups.setdefault(_judged_on(model.recipe), []).append(model)
    return tuple(_panel_of(config, group, models[0].preprocess) for config, group in groups.items())


def panel_on(models: Sequence[Model], overrides: Mapping[str, Any], targets: bool = True) -> Panel:
    """All models on all rows of the data that `overrides` of their recipes name; without `targets` they are not looked
    at. Raises DataError."""
    require_alike(models)
    opened: dict[Hashable, Data] = {}
    data = []
    for model in models:
        config = replace(override(model.recipe, overrides).data, split=Split())
        key = (config, _prepared(model.preprocess))
        if key not in opened:
            opened[key] = open_with(model.preprocess, config, targets)
        data.append(opened[key])
    _require_same_rows(models, data, "test")
    return Panel(tuple(models), tuple(data), "test", config.path, models[0].preprocess)


def notes_of(panels: Sequence[Panel]) -> tuple[str, ...]:
    """What the user must know of how their data was read, each sentence once."""
    return tuple(dict.fromkeys(note for panel in panels for data in panel.data for note in data.notes))


def _panel_of(config: DataConfig, models: Sequence[Model], reference: Preprocess) -> Panel:
    require_alike(models)
    loaded: dict[Hashable, Data] = {}
    data = []
    for model in models:
        key = (model.fingerprint, _prepared(model.preprocess))
        if key not in loaded:
            loaded[key] = _held_out(config, model)
        data.append(loaded[key])
    (split,) = data[0].splits
    _require_same_rows(models, data, split)
    return Panel(tuple(models), tuple(data), split, config.path, reference)


def _held_out(config: DataConfig, model: Model) -> Data:
    """The one split that judges the model; what it was trained on is let go."""
    recipe, trained = model.recipe, Trained(model.preprocess, model.fingerprint)
    data = load(config, recipe.goal.target, recipe.seed, trained)
    for split in ("test", "validation"):
        if data.sizes.get(split):
            return replace(data, splits={split: data.splits[split]})
    raise DataError("data.split: nothing was held out, so there is nothing to evaluate on; give data.path=FILE")


def _require_same_rows(models: Sequence[Model], data: Sequence[Data], split: str) -> None:
    for model, own in zip(models, data, strict=True):
        if own.sizes[split] != data[0].sizes[split]:
            raise DataError(
                f"{model.directory}: reads other rows than {models[0].directory}, so they cannot be averaged; "
                "use one of them"
            )


def _judged_on(recipe: Recipe) -> DataConfig:
    """What decides which rows a model is judged on: a resample of the others changes nothing."""
    split = recipe.data.split
    return replace(recipe.data, split=replace(split, seed=split.seed_or(recipe.seed), bootstrap=None))


def _prepared(preprocess: Preprocess) -> Hashable:
    """Equal where two models take the same row as the same input."""
    fitted = preprocess.fitted
    return preprocess.spec, fitted if isinstance(fitted, TableFit | ImageFit) else fitted.sha256


def _standardization(preprocess: Preprocess) -> tuple[float, float]:
    """Mean and standard deviation of real targets."""
    fitted = preprocess.fitted
    return (fitted.target_mean, fitted.target_std) if isinstance(fitted, TableFit) else (0.0, 1.0)


def require_alike(models: Sequence[Model], *, tokens: bool = True) -> None:
    """Raises DataError for the first model whose answers cannot be averaged with those of the first.

    `tokens` asks for one tokenizer too: models that each judge texts of their own may have several.
    """
    first = models[0]
    for other in models[1:]:
        what = ""
        if _answers(other.spec) != _answers(first.spec):
            what = "predicts something else"
        elif tokens and first.spec.target == "token":
            same = other.preprocess.tokenizer.sha256 == first.preprocess.tokenizer.sha256
            what = "" if same else "has another tokenizer"
        if what:
            raise DataError(
                f"{other.directory}: {what} than {first.directory}, so they cannot be averaged; use one of them"
            )


def _answers(spec: Spec) -> Hashable:
    """What its outputs mean, but for the tokens of a text, which the tokenizer says."""
    return spec.target, spec.classes, None if spec.target == "token" else spec.outputs
