"""A Task is what travels: a network with its objective, one `nn.Module` whose forward gives a loss per example.

DDP, FSDP, `torch.compile`, `functional_call` and `vmap` all act on `forward`; masks, example weights, clipping and
advantages act outside it, on the losses and weights that it returns.
"""

from typing import Literal, Protocol

from torch import Tensor, nn

Batch = dict[str, Tensor]


class Objective(Protocol):
    """Losses and weights of a batch, one each per example; see `core.objectives`."""

    @property
    def target(self) -> Literal["class", "real", "token"]: ...

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor: ...

    def weights(self, batch: Batch) -> Tensor: ...


class Task(nn.Module):
    """`task(batch)` -> (losses [B], weights [B]); with `outputs=True` also the network's outputs."""

    def __init__(self, network: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.network = network
        self.objective = objective

    def forward(self, batch: Batch, outputs: bool = False) -> tuple[Tensor, ...]:
        predicted = self.network(batch["inputs"], batch.get("key") if self.training else None)
        losses, weights = self.objective.losses(predicted, batch), self.objective.weights(batch)
        return (losses, weights, predicted) if outputs else (losses, weights)


def split(batch: Batch, parts: int, dim: int = 0) -> list[Batch]:
    """Micro-batches: the rows along `dim` in order, in `parts` parts of sizes as equal as they can be, none empty."""
    if parts == 1:
        return [batch]
    pieces = {name: tensor.tensor_split(parts, dim) for name, tensor in batch.items()}
    micros = [{name: pieces[name][i] for name in batch} for i in range(parts)]
    return [micro for micro in micros if micro["weight"].numel()]


def cut(batch: Batch, shards: int) -> list[Batch]:
    """Logical shards of a batch in memory of their own: the last bit of some kernels depends on where rows lie."""
    return [{name: tensor.clone() for name, tensor in part.items()} for part in split(batch, shards)]
