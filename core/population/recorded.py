"""A step recorded as the plain list of its kernels, which is then played without autograd and without vmap.

Small models spend most of a step in those two: a recording of a population's step takes about two thirds of the time.
It is used only after it has given the same numbers as the step itself, bit for bit.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.experimental.proxy_tensor import make_fx

from core.unhurried import COMPILER

Tensors = dict[str, Tensor]
Function = Callable[[Tensor, Tensors, Tensors, Tensors], tuple[Tensor, Tensor]]
Shapes = tuple[Any, ...]
WORTH = 12  # calls with the same shapes before they are recorded, which takes as long as some hundred steps
SMALL_S = 0.02  # calls that take longer are spent in their kernels; on a GPU it is their launches that are timed
IMPORT_S = 2.0  # of calls before a process records for the first time and imports torch's compiler, in half that time
aten: Any = torch.ops.aten
VIEWS = {aten.expand.default, aten.view.default, aten._unsafe_view.default}
SHAPED = {  # whose values do not depend on their arguments' values
    aten.scalar_tensor.default, aten.new_zeros.default, aten.new_ones.default, aten.new_full.default,
    aten.ones_like.default, aten.zeros_like.default, aten.full.default,
}  # fmt: skip


class Recording:
    """Calls a function of (rows [N, D], fixed, buffers, batch) -> (losses [N], gradients [N, D]), always the same one,
    or plays what was recorded of it for these shapes."""

    spent_s = 0.0  # in this process, on calls that were not played

    def __init__(self) -> None:
        self.calls: dict[Shapes, int] = {}
        self.fastest: dict[Shapes, float] = {}  # seconds
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
        elif self._is_worth(shapes):
            self.played[shapes] = _recorded(function, inputs, [fixed, buffers, batch])
        began = time.perf_counter()
        result = function(rows, fixed, buffers, batch)
        seconds = time.perf_counter() - began
        self.fastest[shapes] = min(seconds, self.fastest.get(shapes, seconds))
        Recording.spent_s += seconds
        return result

    def _is_worth(self, shapes: Shapes) -> bool:
        self.calls[shapes] = self.calls.get(shapes, 0) + 1
        if self.calls[shapes] < WORTH or self.fastest[shapes] > SMALL_S:
            return False
        return COMPILER in sys.modules or Recording.spent_s >= IMPORT_S

    def forget(self) -> None:
        """What was recorded holds numbers that have changed since, such as a dropout's share."""
        self.calls.clear()
        self.fastest.clear()
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
    _simplify(graph, inputs)
    same = zip(flat(*inputs), graph(*inputs), strict=True)
    return graph if all(torch.equal(a, b) for a, b in same) else None


def _simplify(graph: GraphModule, inputs: list[Tensor]) -> None:
    """Leaves out what changes nothing once there is no autograd, and computes once what depends on shapes alone."""
    if any(_changes_its_arguments(node) for node in graph.graph.nodes):
        return
    values = _Values(graph)
    values.run(*inputs)
    constant = set[Node]()
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or not isinstance(values.of[node], Tensor):
            continue
        if node.target in SHAPED or (node.all_input_nodes and constant.issuperset(node.all_input_nodes)):
            constant.add(node)
        elif (same := _same_as(node, values.of, constant)) is not None:
            node.replace_all_uses_with(same)
    for number, node in enumerate(constant):
        if any(user not in constant for user in node.users):
            graph.register_buffer(f"constant_{number}", values.of[node].clone())
            with graph.graph.inserting_before(node):
                node.replace_all_uses_with(
                    graph.graph.get_attr(f"constant_{number}"), lambda user: user not in constant
                )
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _changes_its_arguments(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _same_as(node: Node, values: dict[Node, Any], constant: set[Node]) -> Node | None:
    """The argument that a node's value is equal to, if it is to any."""
    first = node.args[0]
    if not isinstance(first, Node):
        return None
    value, given = values[node], values[first]
    if node.target is aten.detach.default or (node.target is aten.mul.Scalar and node.args[1] == 1):
        return first
    if node.target in VIEWS and value.shape == given.shape and value.stride() == given.stride():
        return first
    if node.target is aten.mul.Tensor and isinstance(other := node.args[1], Node):
        for ones, rest in ((first, other), (other, first)):
            factor, kept = values[ones], values[rest]
            if (
                ones in constant
                and bool((factor == 1).all())
                and (kept.shape, kept.dtype) == (value.shape, value.dtype)
            ):
                return rest
    return None


class _Values(Interpreter):
    """Notes the value of every node."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.of: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        self.of[n] = super().run_node(n)
        return self.of[n]
