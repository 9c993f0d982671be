"""Tensors as arrays and back, without copies: what is sent between processes is never a tensor."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


def as_array(tensor: "torch.Tensor") -> tuple[Any, ...]:
    """(bytes, name of the type, shape), detached and on the CPU; bytes, since NumPy has no bfloat16. A sparse,
    quantized or meta tensor in torch's own way: (function, arguments)."""
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        function, arguments = tensor.__reduce_ex__(2)[:2]
        return function, arguments
    flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy(), str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)


def as_tensor(packed: tuple[Any, ...]) -> "torch.Tensor":
    """The tensor that `as_array` took apart, on the same memory."""
    import torch

    if len(packed) == 2:
        function, arguments = packed
        tensor: torch.Tensor = function(*arguments)
        return tensor
    array, dtype, shape = packed
    return torch.from_numpy(np.asarray(_Writable(array))).view(getattr(torch, dtype)).reshape(shape)


class _Writable:
    """The same memory as a read-only array, without the mark: torch has no read-only tensors, and warns."""

    def __init__(self, array: "np.ndarray[Any, Any]") -> None:
        self._array = array  # keeps the memory
        interface = array.__array_interface__
        self.__array_interface__ = interface | {"data": (interface["data"][0], False)}
