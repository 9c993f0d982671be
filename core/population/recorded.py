"""A step recorded as the plain list of its kernels, which is then played without autograd and without vmap.

Small models spend most of a step in those two: a recording of a population's step takes about two thirds of the time.
It is used only after it has given the same numbers as the step itself, bit for bit.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

Tensors = dict[str, Tensor]
Function = Callable[[Tensor, Tensors, Tensors, Tensors], tuple[Tensor, Tensor]]
Shapes = tuple[Any, ...]
WORTH = 8  # calls with the same shapes before they are recorded, which takes as long as some hundred steps
SAME = torch.ops.aten.detach.default


class Recording:
    """Calls a function of (rows [N, D], fixed, buffers, batch) -> (losses [N], gradients [N, D]), always the same one,
    or plays what was recorded of it for these shapes."""

    def __init__(self) -> None:
        self.calls: dict[Shapes, int] = {}
        self.played: dict[Shapes, GraphModule | None] = {}

    def __call__(
        self, function: Function, rows: Tensor, fixed: Tensors, buffers: Tensors, batch: Tensors
    ) -> tuple[Tensor, Tensor]:
        inputs = [rows, *fixed.values(), *buffers.values(), *batch.values()]
        shapes = tuple((name, tensor.shape) for name, tensor in [("", rows), *batch.items()])
        if shapes in self.played:
            graph = self.played[shapes]
            if graph is not None:
                losses, gradients = graph(*inputs)
                return losses, gradients
        else:
            self.calls[shapes] = self.calls.get(shapes, 0) + 1
            if self.calls[shapes] == WORTH:
                self.played[shapes] = _recorded(function, inputs, [fixed, buffers, batch])
        return function(rows, fixed, buffers, batch)

    def forget(self) -> None:
        """What was recorded holds numbers that have changed since, such as a dropout's share."""
        self.calls.clear()
        self.played.clear()


def _recorded(function: Function, inputs: list[Tensor], groups: list[Tensors]) -> GraphModule | None:
    """The recording; None if it would not give the same numbers. `groups` are the inputs after the first, by name."""

    def flat(rows: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        tensors = iter(rest)
        return function(rows, *[{name: next(tensors) for name in group} for group in groups])

    try:
        graph = make_fx(flat)(*inputs)
    except RuntimeError:  # something in it depends on values, not on shapes alone
        return None
    _simplify(graph)
    same = zip(flat(*inputs), graph(*inputs), strict=True)
    return graph if all(torch.equal(a, b) for a, b in same) else None


def _simplify(graph: GraphModule) -> None:
    """Leaves out what changes nothing once there is no autograd."""
    for node in list(graph.graph.nodes):
        if node.target is SAME or (node.target is torch.ops.aten.mul.Scalar and node.args[1] == 1):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
