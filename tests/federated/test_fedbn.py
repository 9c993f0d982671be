"""FedBN finds the norm layers of real models, and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from core.config import parse
from core.data import Spec
from core.errors import ConfigError
from core.learner import prepare
from core.population.frame import Frame
from core.recipe import Recipe
from core.task import Task
from federated.strategies.fedbn import FedBN


def framed(model: dict[str, Any], kind: str = "image") -> tuple[Frame, Task]:
    spec = Spec("image", (1, 8, 8), 3, "class") if kind == "image" else Spec("text", (8,), 11, "token")
    recipe = parse(Recipe, {"data": {"kind": kind}, "model": model, "optimizer": {"kind": "sgd"}})
    task = prepare(recipe, spec)
    return Frame.around(task, recipe), task


CNN = {"kind": "cnn", "channels": [4, 8], "hidden": 8}


@pytest.mark.parametrize(
    "model, kind, is_norm",
    [
        ({**CNN, "norm": "group"}, "image", lambda name: "norms." in name),
        ({**CNN, "norm": "batch"}, "image", lambda name: "norms." in name),
        ({"kind": "gpt", "layers": 1, "heads": 2, "width": 8}, "text", lambda name: "norm" in name),
        (
            {"kind": "gpt", "layers": 1, "heads": 2, "width": 8, "norm": "layernorm", "bias": True},
            "text",
            lambda name: "norm" in name,
        ),
    ],
    ids=["group norm", "batch norm", "rms norm", "layer norm"],
)
def test_fedbn_keeps_the_numbers_of_norm_layers_and_no_others(
    model: dict[str, Any], kind: str, is_norm: Callable[[str], bool]
) -> None:
    frame, task = framed(model, kind)
    kept = FedBN().kept(frame, task)
    assert kept.shape == (frame.size,) and kept.dtype == torch.bool
    named = {place.name: kept[place.start : place.end] for place in frame.places}
    assert {name for name, part in named.items() if part.all()} == {name for name in named if is_norm(name)}
    assert {name for name, part in named.items() if part.any()} == {name for name in named if is_norm(name)}


def test_fedbn_keeps_the_running_statistics_of_batch_norm() -> None:
    frame, task = framed({**CNN, "norm": "batch"})
    assert frame.size > frame.trainable and FedBN().kept(frame, task)[frame.trainable :].all()


def test_fedbn_refuses_a_model_without_norm_layers() -> None:
    with pytest.raises(ConfigError, match=r"^strategy\.kind: fedbn finds no norm layer"):
        FedBN().kept(*framed({**CNN, "norm": "none"}))
