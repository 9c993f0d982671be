"""How many members fit into memory at once, from an estimate of what one of them takes."""

from functools import cache

import torch

from core.estimate import estimate, example_batch
from core.learner import freeze
from core.population.member import Member, Signature

SHARE = 0.5  # of the free memory that a population may take
SCRATCH = 2.0  # times the estimate of one member: gradients in flight, and attention whose scores are written out


def members_at_once(member: Member, device: torch.device, free_bytes: int | None = None) -> tuple[int, int]:
    """(how many like this one can train together, the bytes that each is expected to take).

    `free_bytes`: the memory to count with; null is what the device has free now.
    """
    each = max(1, int(SCRATCH * _bytes_of(_Shape(member))))
    free = free_bytes if free_bytes is not None else free_memory(device)
    return max(1, int(SHARE * free) // each), each


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken: of the device where it has its own memory, else of this machine."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    import psutil

    return int(psutil.virtual_memory().available)


class _Shape:
    """A member as a key: two with the same signature take the same."""

    def __init__(self, member: Member) -> None:
        self.member, self.signature = member, Signature.of(member)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Shape) and self.signature == other.signature

    def __hash__(self) -> int:
        return hash(self.signature)


@cache
def _bytes_of(shape: _Shape) -> int:
    recipe, spec, train = shape.member.recipe, shape.member.shard.spec, shape.member.recipe.train
    task = recipe.build(spec)
    freeze(task, recipe.freeze)
    micro = -(-shape.member.shard.rows(train) // train.accumulate)
    return estimate(
        task, example_batch(spec, max(2, micro)), recipe.optimizer, train.batch_size, train.precision
    ).memory_bytes
