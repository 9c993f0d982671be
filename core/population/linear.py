"""The linear layers of many members as one product each way.

Torch's own batching computes a weight's gradient as the transpose of a product, and turns it around afterwards: for
small members that takes six times as long as the product the other way around.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import is_batchedtensor
from torch.overrides import TorchFunctionMode


class StackedLinears(TorchFunctionMode):
    """Within it, under `vmap`, `F.linear` of a member's weight is done for all members together, in float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and not kwargs and len(args) == 3 and is_batchedtensor(args[1]):
            return _Linear.apply(*args)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


class _Linear(torch.autograd.Function):
    """inputs [N, R, I], weights [N, O, I], biases [N, O] or None -> [N, R, O], for N members."""

    @staticmethod
    def forward(inputs: Tensor, weights: Tensor, biases: Tensor | None) -> Tensor:
        outputs = torch.bmm(inputs, weights.transpose(1, 2))
        return outputs if biases is None else outputs + biases[:, None]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], inputs[1])
        ctx.has_bias = inputs[2] is not None

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weights = ctx.saved_tensors
        (outputs,) = gradients
        return (
            torch.bmm(outputs, weights) if ctx.needs_input_grad[0] else None,
            torch.bmm(outputs.transpose(1, 2), inputs) if ctx.needs_input_grad[1] else None,
            outputs.sum(1) if ctx.has_bias and ctx.needs_input_grad[2] else None,
        )

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], inputs: Tensor, weights: Tensor, biases: Tensor | None
    ) -> tuple[Tensor, int]:
        stacked = [
            None if tensor is None else _members_first(tensor, dim, info.batch_size)
            for tensor, dim in zip((inputs, weights, biases), in_dims, strict=True)
        ]
        assert stacked[0] is not None
        shape = stacked[0].shape[:-1]
        rows = stacked[0].flatten(1, -2) if stacked[0].ndim > 2 else stacked[0][:, None]
        outputs = _Linear.apply(rows, *stacked[1:])  # type: ignore[no-untyped-call]
        return outputs.view(*shape, outputs.shape[-1]), 0


def _members_first(tensor: Tensor, dim: int | None, members: int) -> Tensor:
    return tensor.expand(members, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
