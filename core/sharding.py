"""Tensors that FSDP2 has spread over ranks (DTensor). That part of torch takes 0.6 s to import: only they load it."""

from typing import Any

import torch
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether this is a DTensor."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor on this rank. For a sharded one every rank must call it."""
    sharded: Any = tensor
    result: Tensor = sharded.full_tensor() if is_sharded(tensor) else tensor
    return result


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; any other tensor as it is."""
    sharded: Any = tensor
    result: Tensor = sharded.to_local() if is_sharded(tensor) else tensor
    return result


def sharded_like(tensor: Tensor, like: Tensor, *, is_everywhere: bool = False) -> Tensor:
    """A whole tensor, on the device of `like` and sharded the way that is.

    `is_everywhere` says that every rank holds the same one, so that nothing need be sent.
    """
    if not is_sharded(like):
        return tensor.to(like.device)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    source = None if is_everywhere else 0
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=source)


def shard(module: torch.nn.Module, device: str, world: int) -> torch.nn.Module:
    """FSDP2 over all ranks: each block of a stack is a unit of its own, the rest one more.

    All are sharded again after every forward pass, so that an evaluation does not leave whole parameters behind.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device, (world,))
    for child in list(module.modules()):
        if isinstance(child, torch.nn.ModuleList):
            for block in child:
                fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    return module
