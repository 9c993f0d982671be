"""The batches of all members side by side: [N, R, ...], each member's own, taken in blocks of steps.

What `Shard.batch` gives one member for a step is what its row holds; shorter batches are filled up with weight 0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from core.population.member import Member
from core.task import Batch

BLOCK_BYTES = 32 << 20  # what is prepared at once, at most
BLOCK_STEPS = 64


class Feed:
    """Each member goes on from its own step. A member that has come to its end gets rows of weight 0."""

    def __init__(self, members: Sequence[Member], device: torch.device, noise: bool, first: int = 4) -> None:
        """`first`: the steps of the first block; few, where the first number should come soon."""
        self.members, self.device, self.noise = list(members), device, noise
        self.steps = [0] * len(self.members)  # where each member is
        self.ready: Batch = {}  # [steps, N, R, ...]
        self.at = self.count = 0
        self.grows = first
        self.member_bytes = 0  # of one step, at most

    def take(self) -> Batch:
        """The next batch of every member."""
        if self.at == self.count:
            self._prepare()
        batch = {name: tensor[self.at] for name, tensor in self.ready.items()}
        self.at += 1
        self.steps = [step + 1 for step in self.steps]
        return batch

    def select(self, rows: Sequence[int]) -> None:
        """Keeps, repeats or reorders members."""
        before = self._most()
        self.members = [self.members[row] for row in rows]
        self.steps = [self.steps[row] for row in rows]
        if before != self._most():  # fill that nobody left needs: sums are the same bits only over as many rows
            self.count = self.at = 0
            return
        index = torch.tensor(rows, dtype=torch.long, device=self.device)
        self.ready = {name: tensor[self.at :].index_select(1, index) for name, tensor in self.ready.items()}
        self.count, self.at = self.count - self.at, 0

    def replace(self, row: int, member: Member, step: int = 0) -> None:
        """Another member in this row, from its step `step` on."""
        self.members[row], self.steps[row] = member, step
        self.count = self.at = 0

    def _most(self) -> int:
        """R."""
        return max((member.shard.rows(member.recipe.train) for member in self.members), default=0)

    def _prepare(self) -> None:
        pairs = list(zip(self.members, self.steps, strict=True))
        left = max([1, *(member.recipe.train.steps - step for member, step in pairs)])
        if not self.member_bytes:
            largest = max(self.members, key=lambda member: member.recipe.train.batch_size)
            self.member_bytes = sum(tensor.nbytes for tensor in self._piece(largest, range(1)).values())
        count = max(1, min(left, self.grows, BLOCK_STEPS, BLOCK_BYTES // max(1, self.member_bytes * len(pairs))))
        self.grows *= 4
        pieces = [self._piece(member, range(step, step + count)) for member, step in pairs]
        most = max(piece["weight"].shape[1] for piece in pieces)
        self.ready = {}
        for name in pieces[0]:
            tensors = [_filled(piece[name], count, most) for piece in pieces]
            self.ready[name] = torch.stack(tensors, dim=1).to(self.device, non_blocking=True)
        self.at, self.count = 0, count

    def _piece(self, member: Member, steps: range) -> Batch:
        """[steps, R, ...], or fewer steps where the member ends; at its end one batch of weight 0."""
        train = member.recipe.train
        own = steps[: max(0, train.steps - steps.start)]
        if own:
            return member.shard.block(train, own, self.noise)
        last = member.shard.block(train, range(1), self.noise)
        return {**last, "weight": torch.zeros_like(last["weight"])}


def _filled(tensor: Tensor, count: int, rows: int) -> Tensor:
    """[count, rows, ...]: zeros after what is there."""
    if tensor.shape[:2] == (count, rows):
        return tensor
    full = tensor.new_zeros(count, rows, *tensor.shape[2:])
    full[: tensor.shape[0], : tensor.shape[1]] = tensor
    return full
