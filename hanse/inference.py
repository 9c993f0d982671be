"""What a trained model, or an ensemble, is asked: how good it is on held-out data, and what it says about new rows."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.config import parse
from core.data import Spec
from core.ensemble.judge import Hearer, judge, nobody
from core.ensemble.panel import Panel, notes_of, panel_on, panels_of
from core.ensemble.spread import Spread, spread_of
from core.ensemble.voices import PLAIN, Mean, MonteCarlo, entropy
from core.errors import ConfigError
from core.runtime import choose_device
from core.storage import artifact
from core.storage.artifact import Model
from hanse.find import find_model

Prediction = dict[str, Any]
FIXED = (
    "missing", "normalize", "categories", "tokenizer", "context", "size", "background", "split", "augment",
    "token_drop", "target", "columns", "drop", "categorical",
)  # fmt: skip
ANSWERS = {"row", "fold", "target", "class", "value", "probability", "entropy", "mutual_information", "std"}
OUT_OF_FOLD = "out-of-fold"  # every row judged by the members that never saw it, all folds together


@dataclass(frozen=True)
class Evaluation:
    """metrics by name; details: confusion matrix and numbers by class, where there are classes; uncertainty: see
    `core.ensemble.uncertainty`; all of them of the mean of `voices` (members that speak about a row, times passes).

    split: `test`, `validation` or `out-of-fold` of the models' own data, `all` of other data. members: the metrics of
    each member of an ensemble alone, and spread: how much they differ. notes: what was told of reading the data.
    """

    metrics: dict[str, float]
    details: dict[str, Any]
    split: str
    examples: int
    source: str
    uncertainty: dict[str, Any]
    voices: int
    members: dict[str, dict[str, float]]
    spread: dict[str, Spread]
    notes: tuple[str, ...] = ()


def load_models(reference: str | Path) -> tuple[Model, ...]:
    """The model of a run (by name or path) or of a model directory; of an ensemble all of its members. DataError."""
    return artifact.load_all(find_model(reference))


def evaluate(
    models: Sequence[Model], overrides: Mapping[str, Any] | None = None, passes: MonteCarlo = PLAIN
) -> Evaluation:
    """On what was held out of the models' own data, or on all of the data that `data.path` and its like name."""
    overrides = _other_data(overrides or {})
    if overrides:
        return _evaluation((panel_on(models, overrides),), "all", passes)
    return _evaluation(panels_of(models), None, passes)


def evaluate_each(models: Sequence[Model]) -> tuple[Evaluation, list[Prediction]]:
    """The evaluation on what was held out, and an answer for each of its rows; none for text.

    {"row", what names it, "target", "class" or "value", ...}: rows are counted from 1 as they stand in the source;
    of folds they are all of its rows, each with its `fold`.
    """
    if models[0].spec.target == "token":
        return _evaluation(panels_of(models), None, PLAIN), []
    panels, heard = panels_of(models), dict[int, list[Heard]]()

    def hear(panel: Panel, mean: Mean, targets: Tensor) -> None:
        heard.setdefault(id(panel), []).append(Heard.of(mean, targets))

    evaluation = _evaluation(panels, None, PLAIN, hear)
    several = any(len(panel.models) > 1 for panel in panels)  # the same columns for all rows
    found = [answer for panel in panels for answer in _held_out(panel, heard[id(panel)], several)]
    return evaluation, sorted(found, key=lambda answer: answer["row"])


def _evaluation(
    panels: Sequence[Panel],
    split: str | None,
    passes: MonteCarlo,
    heard: Hearer = nobody,
) -> Evaluation:
    split = split or (panels[0].split if len(panels) == 1 else OUT_OF_FOLD)
    judged = judge(panels, passes, choose_device("auto"), heard)
    folds = panels[0].models[0].recipe.data.split.folds or 0 if split == OUT_OF_FOLD else 0
    return Evaluation(
        metrics=judged.metrics,
        details=judged.details,
        split=split,
        examples=judged.examples,
        source=panels[0].source,
        uncertainty=judged.uncertainty,
        voices=judged.voices,
        members=judged.members,
        spread=spread_of(list(judged.members.values()), folds),
        notes=notes_of(panels),
    )


def predict(
    models: Sequence[Model],
    overrides: Mapping[str, Any],
    passes: MonteCarlo = PLAIN,
    tell: Callable[[str], None] = lambda note: None,
) -> list[Prediction]:
    """One answer per row of the data that `data.path` names: class and its probability, or a value. No target is read.

    Each has its row, counted from 1 as it stands in the source, and what names it: a picture's file, a table's
    `data.id`. Where several voices speak, also how sure they are: entropy of their mean and mutual information in
    nats, or the standard deviation between them in the target's units. `tell` gets the notes of reading the data.
    """
    if models[0].spec.target == "token":
        raise ConfigError(f"{models[0].directory}: a language model predicts text; use `hanse generate`")
    if "data.path" not in overrides:
        raise ConfigError("data.path: name the file with the rows to predict, data.path=FILE")
    panel, device = panel_on(models, _other_data(overrides), targets=False), choose_device("auto")
    for note in notes_of([panel]):
        tell(note)
    panel.to(device)
    with torch.inference_mode():
        heard = [Heard.of(panel.ask(batches, start, passes)) for start, batches in panel.batches(device)]
    found = _answers(panel, heard, len(models) > 1 or passes.samples > 0)
    return [{**place, **answer} for place, answer in zip(_places(panel), found, strict=True)]


@dataclass(frozen=True)
class Heard:
    """What is said about a batch, and its true targets where they are asked for; on the CPU."""

    outputs: Tensor
    spread: Tensor
    targets: Tensor | None = None

    @classmethod
    def of(cls, mean: Mean, targets: Tensor | None = None) -> "Heard":
        """Copies it from where the models are."""
        return cls(mean.outputs.float().cpu(), mean.spread.cpu(), None if targets is None else targets.cpu())


def _held_out(panel: Panel, heard: Sequence[Heard], several: bool) -> list[Prediction]:
    split = panel.models[0].recipe.data.split
    fold = {"fold": split.fold} if split.folds else {}
    columns = zip(_places(panel), _targets(panel, heard), _answers(panel, heard, several), strict=True)
    return [{**place, **fold, "target": target, **answer} for place, target, answer in columns]


def _places(panel: Panel) -> list[Prediction]:
    """Where each row of a panel stands in its source, and what names it."""
    data = panel.data[0]
    assert data.rows is not None, "text has no rows"
    rows: list[int] = data.rows[panel.split].tolist()
    if data.names is None:
        return [{"row": row + 1} for row in rows]
    name = data.names.what if data.names.what and data.names.what not in ANSWERS else "id"
    return [{"row": row + 1, name: data.names.values[row]} for row in rows]


def _answers(panel: Panel, heard: Sequence[Heard], several: bool) -> list[Prediction]:
    """What a panel says about each of its rows, see `predict`; `heard` of its batches. `several` voices say it."""
    # the rows that fill up the last batch stand at its end
    outputs = torch.cat([said.outputs for said in heard])[: panel.examples]
    spread = torch.cat([said.spread for said in heard])[: panel.examples]
    spec = panel.models[0].spec
    columns: dict[str, list[Any]]
    if spec.target == "real":
        columns = {"value": panel.reference.to_units(outputs)[:, 0].tolist()}
        doubt = {"std": (spread.sqrt()[:, 0] * panel.unit).tolist()}
    else:
        probability, label = outputs.softmax(dim=1).max(dim=1)
        columns = {"class": [_class(spec, i) for i in label.tolist()], "probability": probability.tolist()}
        entropies = entropy(outputs.log_softmax(1))
        doubt = {"entropy": entropies.tolist(), "mutual_information": (entropies - spread).clamp(min=0).tolist()}
    if several:
        columns |= doubt
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _targets(panel: Panel, heard: Sequence[Heard]) -> list[Any]:
    """The true class or value of each row, as `_answers` writes them."""
    found = torch.cat([said.targets for said in heard if said.targets is not None])[: panel.examples]
    if panel.models[0].spec.target == "real":
        # float32 keeps 24 bits of a standardized value up to 8: what is left of rounding is no digit of the file
        digits = -math.ceil(math.log10(panel.unit * 2.0**-21))
        return [round(value, digits) for value in panel.reference.to_units(found)[:, 0].tolist()]
    return [_class(panel.models[0].spec, i) for i in found.tolist()]


def _class(spec: Spec, index: int) -> str:
    return spec.classes[index] if spec.classes else str(index)


def read_passes(overrides: dict[str, Any]) -> MonteCarlo:
    """Takes `samples` and `seed` out of the words of a command."""
    return parse(MonteCarlo, {name: overrides.pop(name) for name in ("samples", "seed") if name in overrides})


def _other_data(overrides: Mapping[str, Any]) -> Mapping[str, Any]:
    """The overrides, if they name other data and nothing else."""
    for key in overrides:
        if not key.startswith("data."):
            raise ConfigError(f"{key}: a trained model takes other data only; write data.path=FILE")
        if key.split(".")[1] in FIXED:
            raise ConfigError(f"{key}: is fixed by the model's training; train again with it")
        if "data.path" not in overrides:
            raise ConfigError(f"{key}: goes with other data than the model was trained on; write data.path=FILE too")
    return overrides
