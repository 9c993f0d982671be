"""Small populations on real data, and how far two executors may be apart."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from core.config import apply, override, parse
from core.data import Data, load
from core.population import Member, Outcome
from core.recipe import Recipe

IMAGES: dict[str, Any] = {"data": {"kind": "image"}, "train": {"steps": 4, "batch_size": 12, "log_every": 1}}
TABLE: dict[str, Any] = {"data": {"kind": "table"}, "train": {"steps": 4, "batch_size": 12, "log_every": 1}}
REAL: dict[str, Any] = {
    "data": {"kind": "table", "path": "bundled:diabetes"},
    "objective": {"kind": "regression"},
    "train": {"steps": 4, "batch_size": 12, "log_every": 1},
}
TEXT: dict[str, Any] = {
    "data": {"kind": "text", "context": 8, "limit_bytes": 6000},
    "train": {"steps": 4, "batch_size": 6, "log_every": 1},
}
GPT = {"kind": "gpt", "layers": 2, "heads": 2, "width": 16}
# Every family of the zoo in every form that takes another path: (base, model, tolerance). The tolerance is the largest
# |a - b| / |a| over the tensors, in the Euclidean norm, after four steps: stacked products sum in another order.
ZOO: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    "mlp": (IMAGES, {"kind": "mlp", "hidden": [16]}, 2e-6),
    "mlp real": (REAL, {"kind": "mlp", "hidden": [8, 8], "activation": "tanh"}, 2e-6),
    "cnn": (IMAGES, {"kind": "cnn", "channels": [8, 8], "hidden": 16}, 2e-5),
    "cnn plain": (IMAGES, {"kind": "cnn", "channels": [4], "hidden": 0, "norm": "none", "pool": "average"}, 2e-5),
    "cnn batch norm": (IMAGES, {"kind": "cnn", "channels": [4, 8], "norm": "batch", "hidden": 8}, 5e-5),
    "resnet": (IMAGES, {"kind": "resnet", "width": 4, "depth": 1, "stages": 2}, 5e-5),
    "resnet batch norm": (IMAGES, {"kind": "resnet", "width": 4, "depth": 1, "stages": 2, "norm": "batch"}, 5e-5),
    "rnn": (TABLE, {"kind": "recurrent", "cell": "rnn", "hidden": 6}, 1e-5),
    "gru": (IMAGES, {"kind": "recurrent", "cell": "gru", "hidden": 6, "layers": 2}, 1e-5),
    "lstm": (TEXT, {"kind": "recurrent", "cell": "lstm", "hidden": 8}, 1e-5),
    "gpt": (TEXT, GPT, 1e-5),
    "gpt grouped": (TEXT, {**GPT, "kv_heads": 1, "positions": "sinusoidal", "tie": False, "activation": "gelu"}, 1e-5),
    "gpt-2": (
        TEXT,
        {**GPT, "positions": "learned", "norm": "layernorm", "activation": "gelu_tanh", "bias": True},
        1e-5,
    ),
}


@cache
def _data(key: str) -> Data:
    recipe = parse(Recipe, _KEYS[key])
    return load(recipe.data, recipe.goal.target, recipe.seed)


_KEYS: dict[str, Mapping[str, Any]] = {}


def data_of(recipe: Recipe) -> Data:
    """The recipe's data with the split of seed 0, read once; order and augmentation follow the recipe's seed."""
    base = dataclasses.replace(recipe, seed=0)
    key = repr((base.data, base.goal.target))
    _KEYS.setdefault(key, dataclasses.asdict(base))
    return dataclasses.replace(_data(key), seed=recipe.seed)


def member(recipe: Recipe, name: str, weights: dict[str, Tensor] | None = None) -> Member:
    return Member(name, recipe, data_of(recipe).shard(), weights)


def members(base: Mapping[str, Any], changes: Sequence[Mapping[str, Any]]) -> list[Member]:
    """One member for each set of dotted overrides; seeds 0, 1, ... where they name none."""
    recipe = parse(Recipe, base)
    return [member(override(recipe, {"seed": i, **change}), f"m{i}") for i, change in enumerate(changes)]


def family(name: str, **changes: Any) -> dict[str, Any]:
    """The mapping of a recipe of `ZOO`, with dotted overrides (`__` for the dot)."""
    base, model, _ = ZOO[name]
    return apply({**base, "model": model}, {key.replace("__", "."): value for key, value in changes.items()})


def weights_of(outcome: Outcome) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in outcome.require().task.network.state_dict().items()}


def apart(a: Outcome, b: Outcome) -> float:
    """The largest |a - b| / |a| over the tensors; all but zero, a counts as 1e-3."""
    ours, theirs = weights_of(a), weights_of(b)
    assert ours.keys() == theirs.keys()
    return max(
        ((ours[n].double() - theirs[n].double()).norm() / ours[n].double().norm().clamp(min=1e-3)).item() for n in ours
    )


def same(a: Outcome, b: Outcome) -> bool:
    ours, theirs = weights_of(a), weights_of(b)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def curve(records: Sequence[Mapping[str, Any]], name: str, key: str = "loss", split: str = "train") -> list[float]:
    return [r[key] for r in records if r.get("member") == name and r.get("split") == split and key in r]


Change = Callable[[int], Mapping[str, Any]]
