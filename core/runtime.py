"""Where a training step runs: device, rank and world size, and how ranks add up.

`LOCAL` is one process on its own. Several ranks share one `torch.distributed` group, whoever started it.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from core.errors import ResourceError
from core.ordered import pairwise, pairwise_over_ranks
from core.sharding import shard
from core.task import Task

Record = dict[str, Any]


@dataclass(frozen=True)
class Runtime:
    """rank of world processes; `report` takes each record on rank 0; `should_stop` is asked between steps on rank 0.

    `listens` false says that nobody looks at the records of single steps, so that none need be made.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    world: int = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    report: Callable[[Record], None] = lambda record: None
    should_stop: Callable[[], bool] = lambda: False
    listens: bool = True

    @property
    def is_alone_on_cpu(self) -> bool:
        """Reading a tensor's value neither waits for a device nor has to agree with other ranks."""
        return self.world == 1 and self.device.type == "cpu"

    def wrap(self, task: Task, compile: bool | Literal["auto"] = "auto", in_order: bool = False) -> nn.Module:
        """The task as this runtime trains it: as it is, compiled, in DDP, or sharded by FSDP2.

        `in_order`: whoever makes the gradients adds them up over the ranks by `total_in_order`.
        """
        if self.compiles(compile):
            task.compile()
        if self.world == 1:
            return task
        if in_order:
            for tensor in [*task.parameters(), *task.buffers()]:
                self.from_rank_0(tensor.detach())
            return task
        if self.strategy == "fsdp":
            return shard(task, self.device.type, self.world)
        devices = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(task, device_ids=devices, gradient_as_bucket_view=True)

    def compiles(self, wanted: bool | Literal["auto"]) -> bool:
        """Whether `train.compile` means to compile here: `auto` does where there is a GPU."""
        return wanted is True or (wanted == "auto" and self.device.type == "cuda")

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, on every rank."""
        if self.world > 1:
            dist.all_reduce(value)
        return value

    def total_in_order(self, value: Tensor) -> Tensor:
        """The same, with additions that do not depend on the number of ranks; see `core.ordered`."""
        return pairwise_over_ranks(value, self.rank, self.world)

    def from_rank_0(self, tensor: Tensor) -> Tensor:
        """Rank 0's content of a tensor, on every rank, in place."""
        if self.world > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def merge(self, states: Sequence[dict[str, Tensor]], in_order: bool = False) -> dict[str, Tensor]:
        """The sum of dicts of tensors of one dtype, 2^n of each rank, over all ranks, in one message."""
        first = states[0]
        if self.world == len(states) == 1:
            return first
        flat = pairwise((torch.cat([t.flatten() for t in state.values()]) for state in states), len(states))
        flat = self.total_in_order(flat) if in_order else self.total(flat)
        pieces = flat.split([t.numel() for t in first.values()])
        return {name: piece.view(t.shape) for (name, t), piece in zip(first.items(), pieces, strict=True)}

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on any rank."""
        if self.world == 1:
            return flag
        return bool(self.total(torch.tensor(float(flag), device=self.device)).item())

    def synchronize(self, model: nn.Module, last: bool) -> contextlib.AbstractContextManager[Any]:
        """The region of a micro-batch; gradients cross the network only with the last one of a step."""
        if self.world > 1 and isinstance(model, nn.parallel.DistributedDataParallel) and not last:
            return model.no_sync()
        if self.world > 1 and self.strategy == "fsdp":
            model.set_requires_gradient_sync(last)  # type: ignore[operator]
        return contextlib.nullcontext()


def choose_device(name: str, rank: int = 0) -> torch.device:
    """`auto` takes CUDA where there is one. Raises ResourceError if CUDA is asked for and absent."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ResourceError("device: cuda is not available to this torch; use device=cpu, or see `hanse doctor`")
    return torch.device("cuda", rank % torch.cuda.device_count()) if name == "cuda" else torch.device(name)


LOCAL = Runtime()
