"""Optimizer state as named tensors and plain JSON, so that a checkpoint needs no pickle and fits by name, not by order.

Options (lr, betas, ...) are not state: they come from the config of the run that restores.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import DataError
from core.sharding import is_sharded, sharded_like

Named = Iterable[tuple[str, nn.Parameter]]
JsonState = dict[str, Any]


def flatten(optimizer: torch.optim.Optimizer, named_parameters: Named) -> tuple[dict[str, Tensor], JsonState]:
    """({"<parameter>/<key>": tensor}, JSON-able rest). The tensors are the optimizer's own, not copies.

    `named_parameters` are at least all that the optimizer trains; sharded state stays sharded (DTensor).
    """
    tensors: dict[str, Tensor] = {}
    parameters: dict[str, Any] = {}
    for name, parameter in _trained(optimizer, named_parameters).items():
        entries = optimizer.state.get(parameter, {})
        kept = {key: value for key, value in entries.items() if isinstance(value, Tensor)}
        tensors |= {f"{name}/{key}": value for key, value in kept.items()}
        plain = {key: value for key, value in entries.items() if key not in kept}
        parameters[name] = {"tensors": sorted(kept), "values": plain}
    return tensors, {"layout": _layout(optimizer), "parameters": parameters}


def restore(
    optimizer: torch.optim.Optimizer, named_parameters: Named, tensors: dict[str, Tensor], json_state: JsonState
) -> None:
    """Puts back what `flatten` gave, bit for bit, as copies on each parameter's device and sharded the way it is.

    `tensors` are whole, not shards. Raises DataError, and changes nothing, if they do not fit this optimizer.
    """
    named = _trained(optimizer, named_parameters)
    saved = json_state["parameters"]
    if json_state["layout"] != _layout(optimizer):
        raise DataError(
            f"optimizer state: saved by {json_state['layout']}, this run has {_layout(optimizer)}; keep the optimizer, "
            "or start from the weights alone with init="
        )
    _refuse("is missing for", set(named) - set(saved))
    _refuse("is of another model: it has", set(saved) - set(named))
    expected = {f"{name}/{key}" for name, entry in saved.items() for key in entry["tensors"]}
    _refuse("lacks the tensor", expected - set(tensors))
    _refuse("has the unknown tensor", set(tensors) - expected)
    for full_name, tensor in tensors.items():
        name, key = full_name.rsplit("/", 1)
        shape = torch.Size() if key == "step" else named[name].shape
        if tensor.shape != shape:
            raise DataError(f"optimizer state: {full_name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}")
    names = {parameter: name for name, parameter in named.items()}
    for group in optimizer.param_groups:
        steps_on_device = bool(group.get("fused") or group.get("capturable"))
        for parameter in group["params"]:
            name = names[parameter]
            values: dict[str, Any] = dict(saved[name]["values"])
            for key in saved[name]["tensors"]:
                tensor = tensors[f"{name}/{key}"]
                if key == "step":
                    values[key] = tensor.to(parameter.device if steps_on_device else "cpu", copy=True)
                else:
                    values[key] = _like(parameter, tensor)
            optimizer.state[parameter] = values


def _trained(optimizer: torch.optim.Optimizer, named_parameters: Named) -> dict[str, nn.Parameter]:
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    named = {name: p for name, p in named_parameters if id(p) in trained}
    assert len(named) == len(trained), "named_parameters must hold every parameter that the optimizer trains, once"
    return named


def _layout(optimizer: torch.optim.Optimizer) -> str:
    """What decides which tensors an optimizer keeps."""
    momentum = any(group.get("momentum") for group in optimizer.param_groups)
    return type(optimizer).__name__.removesuffix("Optimizer") + (" with momentum" if momentum else "")


def _refuse(problem: str, names: set[str]) -> None:
    if names:
        first, more = min(names), len(names) - 1
        others = f" and {more} more" if more else ""
        raise DataError(f"optimizer state: it {problem} {first}{others}; is it this model's?")


def _like(parameter: Tensor, saved: Tensor) -> Tensor:
    """A copy of whole saved state with the parameter's device, strides and sharding, and its own dtype."""
    if is_sharded(parameter):
        return sharded_like(saved, parameter, is_everywhere=True)
    return torch.empty_like(parameter, dtype=saved.dtype, requires_grad=False).copy_(saved)
