"""What a trained model is asked: how good it is on held-out data, and what it says about new rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.config import override
from core.data import Data, Trained, load, open_with
from core.errors import ConfigError, DataError
from core.runtime import LOCAL, Runtime, choose_device
from core.storage import artifact
from core.storage.artifact import Model
from core.train import evaluate as measure
from core.train import metrics_of
from hanse.launch import find_model

Prediction = dict[str, Any]
FIXED = ("missing", "normalize", "categories", "tokenizer", "context", "size", "split", "augment", "token_drop")


@dataclass(frozen=True)
class Evaluation:
    """metrics by name; details: confusion matrix and numbers by class, where there are classes; split: `test` or
    `validation` of the model's own data, `all` of other data."""

    metrics: dict[str, float]
    details: dict[str, Any]
    split: str
    examples: int
    source: str


def load_model(reference: str | Path) -> Model:
    """The model of a run (by name or path) or of a model directory. Raises DataError."""
    return artifact.load(find_model(reference))


def evaluate(model: Model, overrides: Mapping[str, Any] | None = None) -> Evaluation:
    """On the held-out split of the model's own data, or on all of the data that `data.path` and its like name."""
    data, runtime = _open(model, overrides or {}), _runtime()
    split = "test" if data.sizes.get("test") else "validation"
    if not data.sizes.get(split):
        raise DataError("data.split: nothing was held out, so there is nothing to evaluate on; give data.path=FILE")
    shard = data.shard()
    source = override(model.recipe, overrides or {}).data.path
    batches = shard.held_out(split, model.recipe.train.evaluate_batch)
    metrics, task = metrics_of(model.recipe, shard), model.task.to(runtime.device)
    state = measure(task, _with_targets(batches, source), metrics, runtime)
    of = "all" if overrides else split
    return Evaluation(metrics.compute(state), metrics.details(state), of, data.sizes[split], source)


def predict(model: Model, overrides: Mapping[str, Any]) -> list[Prediction]:
    """One answer per row of the data that `data.path` names: class and its probability, or a value."""
    if model.spec.target == "token":
        raise ConfigError(f"{model.directory}: a language model predicts text; use `hanse generate`")
    if "data.path" not in overrides:
        raise ConfigError("data.path: name the file with the rows to predict, data.path=FILE")
    data, runtime = _open(model, overrides), _runtime()
    network = model.task.network.to(runtime.device).eval()
    batches = data.shard().held_out("test", model.recipe.train.evaluate_batch)
    with torch.inference_mode():
        outputs = [network(batch["inputs"].to(runtime.device)).float().cpu() for batch in batches]
    found = torch.cat(outputs)[: data.sizes["test"]]  # the rows that fill up the last batch stand at its end
    if model.spec.target == "real":
        values = model.preprocess.to_units(found)[:, 0].tolist()
        return [{"row": i + 1, "value": value} for i, value in enumerate(values)]
    probability, label = found.softmax(dim=1).max(dim=1)
    names = model.spec.classes or tuple(str(i) for i in range(model.spec.outputs))
    answers = zip(label.tolist(), probability.tolist(), strict=True)
    return [{"row": i + 1, "class": names[index], "probability": p} for i, (index, p) in enumerate(answers)]


def _open(model: Model, overrides: Mapping[str, Any]) -> Data:
    for key in overrides:
        if not key.startswith("data."):
            raise ConfigError(f"{key}: a trained model takes other data only; write data.path=FILE")
        if key.split(".")[1] in FIXED:
            raise ConfigError(f"{key}: is fixed by the model's training; train again with it")
        if "data.path" not in overrides:
            raise ConfigError(f"{key}: goes with other data than the model was trained on; write data.path=FILE too")
    if not overrides:
        recipe = model.recipe
        return load(recipe.data, recipe.goal.target, recipe.seed, Trained(model.preprocess, model.fingerprint))
    return open_with(model.preprocess, override(model.recipe, overrides).data)


def _with_targets(batches: Any, source: str) -> Any:
    for batch in batches:
        if "targets" not in batch:
            raise DataError(f"{source}: holds no targets to compare with; `hanse predict` needs none")
        yield batch


def _runtime() -> Runtime:
    device = choose_device("auto")
    return LOCAL if device.type == "cpu" else Runtime(device)
