"""How many members fit into memory at once, from what one of them takes."""

import torch

from core.estimate import example_batch, training_bytes
from core.learner import freeze
from core.population.member import Member, Signature

SHARE = 0.5  # of the free memory that a population may take
SCRATCH = 2.0  # times what one member keeps: gradients in flight, and attention whose scores are written out


def members_at_once(member: Member, device: torch.device, free_bytes: int | None = None) -> tuple[int, int]:
    """(how many like this one can train together, the bytes that each is expected to take).

    `free_bytes`: the memory to count with; null is what the device has free now.
    """
    each = max(1, int(SCRATCH * _bytes_of(member, device)))
    free = free_bytes if free_bytes is not None else free_memory(device)
    return max(1, int(SHARE * free) // each), each


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken: of the device where it has its own memory, else of this machine."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    import psutil

    return int(psutil.virtual_memory().available)


def _bytes_of(member: Member, device: torch.device) -> int:
    """What one member takes; those of the same signature take the same, for as many rows on the same device."""
    recipe, train = member.recipe, member.recipe.train
    micro = max(2, -(-member.shard.rows(train) // train.accumulate))  # batch norm refuses one row
    key = (Signature.of(member), micro, device)
    if key not in _KNOWN:
        task = recipe.build(member.shard.spec)
        freeze(task, recipe.freeze)
        batch = example_batch(member.shard.spec, micro)
        size = training_bytes(task, batch, recipe.optimizer, train.precision, device)
        if recipe.privacy:  # a gradient for each example
            size += micro * sum(p.nbytes for p in task.parameters() if p.requires_grad)
        _KNOWN[key] = size
    return _KNOWN[key]


_KNOWN: dict[tuple[Signature, int, torch.device], int] = {}
