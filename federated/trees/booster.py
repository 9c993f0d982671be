"""Models of trees as bytes: made, grown and asked by the library, cut and joined as the JSON that it writes.

The JSON lists trees in the order in which they were grown; of a model with 3 or more classes, tree i is of class i % C.
"""

import json
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.data import Data
from core.errors import ConfigError, DataError
from core.randomness import seed_of
from federated.policy import Policy
from federated.trees.config import Plan


@dataclass(frozen=True)
class Rows:
    """Inputs [N, F] float32, targets [N] and example weights [N] float32 of one client. least: rows of a leaf."""

    inputs: Tensor
    targets: Tensor
    weight: Tensor
    least: int = 0

    @classmethod
    def of(cls, data: Data, split: str, plan: Plan) -> "Rows":
        """One split of a client's data; images become rows. DataError if they are not what the plan is for."""
        examples = data.splits[split]
        addresses = examples.addresses(data.seed, None)
        inputs, targets = examples.take(addresses)
        weight = torch.ones(len(inputs)) if examples.weight is None else examples.weight[addresses].float()
        inputs = inputs.flatten(1).float()
        have, need = (data.spec.target, data.spec.outputs, inputs.shape[1]), (plan.target, plan.outputs, plan.features)
        if have != need or targets is None:
            told = "{} targets of {} outputs and {} inputs"
            raise DataError(f"trees: this client has {told.format(*have)}, the others {told.format(*need)}")
        return cls(inputs, targets.reshape(len(inputs)), weight)

    def under(self, policy: Policy) -> Self:
        """The same as trees may see them: inputs are those of groups, for they become a tree's thresholds."""
        columns = [policy.lowered(column) for column in self.inputs.double().T]
        return replace(self, inputs=torch.stack(columns, dim=1).float(), least=policy.least_count)


def library() -> Any:
    """The boosting library. ConfigError if it is not installed."""
    try:
        return import_module("xgboost")
    except ModuleNotFoundError as error:
        if error.name != "xgboost":
            raise
        raise ConfigError("trees: need the library xgboost; run: pip install 'hanse[trees]'") from None


def empty(plan: Plan) -> bytes:
    """The model before the first tree."""
    xgboost = library()
    nothing = xgboost.DMatrix(np.zeros((1, plan.features), np.float32), label=np.zeros(1), nthread=1)
    return _raw(xgboost.train(plan.library_parameters(0), nothing, num_boost_round=0))


def grow(model: bytes, rows: Rows, plan: Plan, *key: int) -> bytes:
    """A client's turn: the model with `plan.added` more trees. `key` addresses the rows that each tree sees."""
    xgboost = library()
    matrix = xgboost.DMatrix(rows.inputs.numpy(), label=rows.targets.numpy(), weight=rows.weight.numpy(), nthread=1)
    seed = seed_of(plan.config.seed, "trees", *key) % 2**31  # all that the library's generator takes
    parameters, steps = plan.library_parameters(seed, rows.least), plan.config.local_trees
    return _raw(xgboost.train(parameters, matrix, num_boost_round=steps, xgb_model=_booster(model)))


def share_of(grown: bytes, plan: Plan) -> bytes:
    """What a client sends for bagging: the trees that it added, with leaves that count 1 / clients.

    Flower takes as many trees of a reply as its `num_parallel_tree` says, so that is the number of them.
    """
    content = json.loads(grown)
    model = _model(content)
    model["trees"] = model["trees"][-plan.added :]
    for tree in model["trees"]:
        conditions = tree["split_conditions"]  # of a leaf: its value
        for node, child in enumerate(tree["left_children"]):
            if child == -1:
                conditions[node] /= plan.clients
    _number(model, plan.width)
    model["gbtree_model_param"]["num_parallel_tree"] = str(plan.added)
    return json.dumps(content).encode()


def settled(joined: bytes, plan: Plan) -> bytes:
    """The model after Flower has joined its trees: it numbers them as if each step had one, and there was one class."""
    content = json.loads(joined)
    _number(_model(content), plan.width)
    return json.dumps(content).encode()


def loads(content: bytes) -> bool:
    """Whether the library takes it for a model."""
    try:
        _booster(content)
    except library().core.XGBoostError:
        return False
    return True


def outputs(model: bytes, inputs: Tensor) -> Tensor:
    """[N, F] -> logits [N, C] of classes, or values [N, 1], float32. DataError if the model is for other inputs."""
    return _outputs(_booster(model), inputs)


def predict(model: bytes, inputs: Tensor) -> Tensor:
    """[N, F] -> probabilities [N, C] of classes, or values [N, 1], float32. DataError as for `outputs`."""
    booster = _booster(model)
    result = _outputs(booster, inputs)
    return result if _is_real(booster) else result.softmax(1)


def _outputs(booster: Any, inputs: Tensor) -> Tensor:
    inputs = inputs.flatten(1).float()
    if inputs.shape[1] != booster.num_features():
        raise DataError(f"trees: this model takes {booster.num_features()} inputs, got {inputs.shape[1]}")
    margins: NDArray[np.float32] = booster.predict(library().DMatrix(inputs.numpy(), nthread=1), output_margin=True)
    result = torch.from_numpy(margins)
    if result.ndim == 2:
        return result
    # of two classes the library has the log-odds of the second
    return result[:, None] if _is_real(booster) else torch.stack([torch.zeros_like(result), result], dim=1)


def _is_real(booster: Any) -> bool:
    return bool(json.loads(booster.save_config())["learner"]["objective"]["name"] == "reg:squarederror")


def _booster(model: bytes) -> Any:
    booster = library().Booster({"nthread": 1})
    booster.load_model(bytearray(model))
    return booster


def _raw(booster: Any) -> bytes:
    return bytes(booster.save_raw("json"))


def _model(content: Any) -> Any:
    return content["learner"]["gradient_booster"]["model"]


def _number(model: Any, width: int) -> None:
    """Counts the trees anew: `width` of them make one step."""
    count = len(model["trees"])
    for i, tree in enumerate(model["trees"]):
        tree["id"] = i
    model["tree_info"] = [i % width for i in range(count)]
    model["iteration_indptr"] = list(range(0, count + 1, width))
    model["gbtree_model_param"] |= {"num_trees": str(count), "num_parallel_tree": "1"}
