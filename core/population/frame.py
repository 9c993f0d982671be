"""How a model lies in one vector: what travels between a server and its clients, and what evolution strategies move."""

from dataclasses import dataclass

import torch
from torch import Tensor

from core.optim.stacked import Layout, Place
from core.recipe import Recipe
from core.task import Task

PREFIX = "network."


@dataclass(frozen=True)
class Frame:
    """The places of a model's numbers in a vector [D]: P trainable ones as in a population's row, then the buffers.

    Only floating-point buffers are in it (batch statistics); counters and frozen parameters stay where they are.
    """

    layout: Layout
    buffers: tuple[Place, ...]

    @classmethod
    def around(cls, task: Task, recipe: Recipe) -> "Frame":
        """The frame of a task, in which what is frozen is frozen already."""
        layout = Layout.of(list(task.named_parameters()), recipe.optimizer)
        places, at = [], layout.size
        for name, buffer in task.named_buffers():
            if buffer.is_floating_point():
                places.append(Place(name, buffer.shape, at, at + buffer.numel()))
                at = places[-1].end
        return cls(layout, tuple(places))

    @property
    def trainable(self) -> int:
        """P."""
        return self.layout.size

    @property
    def size(self) -> int:
        """D."""
        return self.buffers[-1].end if self.buffers else self.layout.size

    @property
    def places(self) -> tuple[Place, ...]:
        """All of them in their order."""
        return (*self.layout.places, *self.buffers)

    def vector(self, task: Task) -> Tensor:
        """A copy of the task's numbers, float32 [D] on the CPU."""
        own = {**dict(task.named_parameters()), **dict(task.named_buffers())}
        return torch.cat([own[place.name].detach().reshape(-1).float().cpu() for place in self.places])

    @torch.no_grad()
    def put(self, task: Task, vector: Tensor) -> None:
        """Gives the task the numbers of a vector [D]."""
        own = {**dict(task.named_parameters()), **dict(task.named_buffers())}
        for place in self.places:
            own[place.name].copy_(vector[place.start : place.end].view(place.shape))

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """The numbers by the network's names, as views of the vector [D]."""
        return {
            place.name.removeprefix(PREFIX): vector[place.start : place.end].view(place.shape) for place in self.places
        }

    def joined(self, tensors: dict[str, Tensor]) -> Tensor:
        """The vector [D] of tensors by the network's names; the inverse of `named`."""
        return torch.cat(
            [tensors[place.name.removeprefix(PREFIX)].detach().reshape(-1).float() for place in self.places]
        )
