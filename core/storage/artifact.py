"""A model directory: everything that using a trained model takes, and nothing that executes.

`config.json` (recipe and spec), `model.safetensors`, the preprocessing fitted on the training split, a model card. An
ensemble is a directory of them whose own `config.json` names its members. Neither holds an absolute path: a copied
directory still works.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from core.config import dump, parse
from core.data import Preprocess, Spec
from core.errors import DataError, blamed
from core.estimate import require_memory
from core.learner import load_weights
from core.models.hub import from_hugging_face
from core.printable import printable
from core.recipe import Recipe
from core.storage.atomic import replace_text
from core.storage.read import read_json
from core.storage.tensors import read_shapes, read_tensors, require_shapes
from core.task import Task

FORMAT = 1
ENSEMBLE = "hanse-ensemble"  # the model_type of a directory of models


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


def save_ensemble(directory: Path, names: Sequence[str]) -> None:
    """Makes one ensemble of the models in the subdirectories `names`: until this is done there is none."""
    assert names and all((directory / name / "config.json").is_file() for name in names), "members are saved first"
    config = {"format": FORMAT, "model_type": ENSEMBLE, "members": list(names)}
    replace_text(directory / "README.md", _ensemble_card(names))
    replace_text(directory / "config.json", json.dumps(config, indent=2) + "\n")


def load_all(directory: str | Path) -> tuple[Model, ...]:
    """The models of an ensemble, in its order; of an ordinary model directory the one. Raises DataError as `load`."""
    path = Path(directory)
    names = _members(path, _read_config(path))
    return tuple(load(path / name) for name in names) if names else (load(path),)


def load(directory: str | Path) -> Model:
    """Raises DataError if the directory is missing, incomplete, damaged, an ensemble or not one of ours."""
    path = Path(directory)
    config, file, weights = _read_one(path), path / "config.json", path / "model.safetensors"
    if config.get("format") != FORMAT:
        raise DataError(f"{file}: not a model of this version of Hanse (format {FORMAT})")
    with blamed(DataError, str(file), "not a model of this version of Hanse"):
        recipe, spec = parse(Recipe, config["recipe"]), parse(Spec, config["spec"])
        fingerprint = str(config["data_sha256"])
        require_memory(recipe, spec)
        outline = recipe.outline(spec).network.state_dict()
    require_shapes(read_shapes(weights), {name: tuple(t.shape) for name, t in outline.items()}, weights)
    preprocess = Preprocess.load(path)
    if preprocess.spec != spec:
        raise DataError(f"{path}: preprocess.json is of another model than config.json; copy the directory as a whole")
    task = recipe.build(spec)
    with blamed(DataError, str(weights), "does not fit config.json"):
        load_weights(task, read_weights(path))
    return Model(task.eval(), recipe, spec, preprocess, fingerprint, path)


def read_weights(directory: str | Path) -> dict[str, Tensor]:
    """The network's tensors in a model directory: one of ours, or a Llama or GPT-2 as Hugging Face lays it out."""
    if _read_one(Path(directory)).get("format") is None:
        return from_hugging_face(directory)[2]
    return read_tensors(Path(directory) / "model.safetensors")


def _read_config(path: Path) -> dict[str, Any]:
    if not (path / "config.json").is_file():
        raise DataError(f"{path}: not a model directory: it has no config.json")
    return read_json(path / "config.json")


def require_single(directory: str | Path) -> None:
    """Raises DataError if this is an ensemble, or no model directory at all."""
    _read_one(Path(directory))


def _read_one(path: Path) -> dict[str, Any]:
    """The config of what must be a single model."""
    config = _read_config(path)
    if names := _members(path, config):
        raise DataError(f"{path}: is an ensemble of {len(names)} models; name one of them, such as {path / names[0]}")
    return config


def _members(path: Path, config: dict[str, Any]) -> tuple[str, ...]:
    """The subdirectories of an ensemble; none for a single model."""
    if config.get("model_type") != ENSEMBLE:
        return ()
    names = config.get("members")
    found = tuple(names) if isinstance(names, list) and all(map(_is_plain, names)) else ()
    if not found or len(set(found)) < len(found):
        raise DataError(f"{path}/config.json: members must name different subdirectories, got {names!r}")
    return found


def _is_plain(name: object) -> bool:
    """Whether it names something in a directory: a path could lead out of it."""
    return isinstance(name, str) and name not in ("", "..") and name == Path(name).name


def _ensemble_card(names: Sequence[str]) -> str:
    return (
        "---\nlibrary_name: hanse\ntags: [ensemble]\n---\n\n"
        f"# An ensemble of {len(names)} models\n\nTheir predictions are averaged. Each member is a model of its own: "
        f"`{'`, `'.join(names)}`.\n\n    hanse evaluate PATH\n    hanse evaluate PATH/{names[0]}\n"
    )


def _card(recipe: Recipe, spec: Spec, parameters: int) -> str:
    return (
        f"---\nlibrary_name: hanse\ntags: [{recipe.model.kind}, {spec.kind}]\n---\n\n# {_words(recipe.name)}\n\n"
        f"A {recipe.model.kind} with {parameters:,} parameters for {spec.kind} inputs of shape {list(spec.shape)} and "
        f"{spec.outputs} outputs, trained on {_words(recipe.data.path)} for {recipe.train.steps} steps, "
        f"seed {recipe.seed}.\n\n"
        f"    hanse evaluate PATH\n\nIts scores stand in the `summary.json` of the run that made it.\n"
    )


def _words(text: str) -> str:
    """Text of the user's as plain words of Markdown: no tag, link or code."""
    return re.sub(r"[\\`*\[\]<>&]", r"\\\g<0>", printable(text))
