"""A model directory: everything that using a trained model takes, and nothing that executes.

`config.json` (recipe and spec), `model.safetensors`, the preprocessing fitted on the training split, a model card. It
holds no absolute path: a copied directory still works.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from core.config import dump, parse
from core.data import Preprocess, Spec
from core.errors import DataError, HanseError
from core.learner import load_weights
from core.models.hub import from_hugging_face
from core.recipe import Recipe
from core.storage.atomic import replace_text
from core.task import Task

FORMAT = 1


@dataclass(frozen=True)
class Model:
    """A trained model: its task in evaluation mode, the recipe that made it, and how its inputs are prepared."""

    task: Task
    recipe: Recipe
    spec: Spec
    preprocess: Preprocess
    fingerprint: str  # SHA-256 of the data it was trained on
    directory: Path


def save(
    directory: Path, recipe: Recipe, spec: Spec, preprocess: Preprocess, weights: dict[str, Tensor], *, fingerprint: str
) -> None:
    """Writes a model directory; `weights` are the network's, `fingerprint` is that of the data."""
    directory.mkdir(parents=True, exist_ok=True)
    preprocess.save(directory)
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in weights.items()}
    safetensors.torch.save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = {
        "format": FORMAT,
        "model_type": f"hanse-{recipe.model.kind}",
        "recipe": dump(recipe),
        "spec": asdict(spec),
        "data_sha256": fingerprint,
    }
    replace_text(directory / "config.json", json.dumps(config, indent=2) + "\n")
    replace_text(directory / "README.md", _card(recipe, spec, sum(t.numel() for t in tensors.values())))


def load(directory: str | Path) -> Model:
    """Raises DataError if the directory is missing, incomplete, damaged or not one of ours."""
    path = Path(directory)
    config = _read_config(path)
    if config.get("format") != FORMAT:
        raise DataError(f"{path}/config.json: not a model of this version of Hanse (format {FORMAT})")
    try:
        recipe, spec = parse(Recipe, config["recipe"]), parse(Spec, config["spec"])
        fingerprint = str(config["data_sha256"])
    except (KeyError, HanseError) as error:
        raise DataError(f"{path}/config.json: not a model of this version of Hanse: {error}") from None
    task = recipe.build(spec)
    loaded = load_weights(task, read_weights(path))
    if loaded.fresh:
        raise DataError(f"{path}/model.safetensors: lacks {loaded.fresh[0]}; the file is not of this config.json")
    return Model(task.eval(), recipe, spec, Preprocess.load(path), fingerprint, path)


def read_weights(directory: str | Path) -> dict[str, Tensor]:
    """The network's tensors in a model directory: one of ours, or a Llama or GPT-2 as Hugging Face lays it out."""
    if _read_config(Path(directory)).get("format") is None:
        return from_hugging_face(directory)[2]
    file = Path(directory) / "model.safetensors"
    try:
        return dict(safetensors.torch.load_file(file))
    except FileNotFoundError:
        raise DataError(f"{file}: no such file; a finished run has it in its model/ directory") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file}: damaged or not a safetensors file: {error}") from None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: not a model directory: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}/config.json: cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise DataError(f"{path}/config.json: is not a JSON object")
    return config


def _card(recipe: Recipe, spec: Spec, parameters: int) -> str:
    return (
        f"---\nlibrary_name: hanse\ntags: [{recipe.model.kind}, {spec.kind}]\n---\n\n# {recipe.name}\n\n"
        f"A {recipe.model.kind} with {parameters:,} parameters for {spec.kind} inputs of shape {list(spec.shape)} and "
        f"{spec.outputs} outputs, trained on `{recipe.data.path}` for {recipe.train.steps} steps, "
        f"seed {recipe.seed}.\n\n"
        f"    hanse evaluate PATH\n\nIts scores stand in the `summary.json` of the run that made it.\n"
    )
