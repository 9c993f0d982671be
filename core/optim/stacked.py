"""The optimizers' twins for a population: every member is one row of a matrix [N, D], with hyperparameters of its own.

Each twin makes the step of its `torch.optim` original, member by member. A number that all members share stays a plain
number, so that members which differ in nothing pay for nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from core.errors import ConfigError
from core.optim.configs import SGD, Adam, AdamW, Lion, Muon, RMSprop, is_hidden_matrix
from core.optim.muon import orthogonalize, step_scale

Number = float | Tensor  # one for all members, or [N, 1]


@dataclass(frozen=True)
class Place:
    """Where a parameter lies in a row."""

    name: str
    shape: torch.Size
    start: int
    end: int


@dataclass(frozen=True)
class Layout:
    """How a member's trainable parameters lie in its row of D numbers.

    What Muon makes orthogonal comes first, then the other parameters that decay, then the rest: each is one slice.
    """

    places: tuple[Place, ...]
    hidden: int  # numbers that Muon trains, 0 for every other optimizer
    decayed: int  # numbers that weight decay acts on

    @classmethod
    def of(cls, named: Sequence[tuple[str, nn.Parameter]], config: Any) -> "Layout":
        """The layout of the parameters that train. Raises ConfigError where `config.build` would."""
        config.build(named)  # its refusals are ours
        trained = [(name, p) for name, p in named if p.requires_grad]

        def rank(entry: tuple[str, nn.Parameter]) -> int:
            name, p = entry
            if isinstance(config, Muon) and is_hidden_matrix(name, p):
                return 0
            return 1 if config.decay_vectors or p.ndim >= 2 else 2

        places, at, ends = [], 0, [0, 0, 0]
        for entry in sorted(trained, key=rank):
            name, parameter = entry
            places.append(Place(name, parameter.shape, at, at + parameter.numel()))
            at = ends[rank(entry)] = places[-1].end
        return cls(tuple(places), ends[0], max(ends[:2]))

    @property
    def size(self) -> int:
        """D."""
        return self.places[-1].end

    def split(self, row: Tensor) -> dict[str, Tensor]:
        """The parameters in a row [D], as views of it."""
        pieces = row.split([place.end - place.start for place in self.places])
        return {place.name: piece.view(place.shape) for place, piece in zip(self.places, pieces, strict=True)}

    def join(self, tensors: dict[str, Tensor]) -> Tensor:
        """The row [D] of a member's parameters."""
        return torch.cat([tensors[place.name].detach().reshape(-1) for place in self.places])


class Stacked(ABC):
    """What the twins share: state as named matrices [N, D] (or fewer columns), and hyperparameters per member."""

    def __init__(self, configs: Sequence[Any], layout: Layout, rows: Tensor) -> None:
        self.configs, self.layout = list(configs), layout
        self.state = {name: rows.new_zeros(len(rows), width) for name, width in self.widths().items()}
        self._numbers: dict[str, Number] = {}

    @abstractmethod
    def widths(self) -> dict[str, int]:
        """The columns of each matrix of the state."""

    @abstractmethod
    def update(self, rows: Tensor, gradients: Tensor, lr: Number, steps: Sequence[int]) -> None:
        """Moves all rows [N, D], and the state, in place; `steps` counts each member's steps with this one.

        `gradients` may be overwritten.
        """

    def change(self, row: int, config: Any) -> None:
        """Other numbers for the member in this row."""
        self.configs[row] = config
        self._numbers.clear()

    def replace(self, row: int, config: Any) -> None:
        """A member begins anew in this row, with other numbers."""
        self.change(row, config)
        for matrix in self.state.values():
            matrix[row] = 0

    def select(self, rows: Sequence[int]) -> None:
        """Keeps, repeats or reorders members."""
        self.configs = [self.configs[row] for row in rows]
        self._numbers.clear()
        index = torch.tensor(rows, dtype=torch.long)
        self.state = {name: m.index_select(0, index.to(m.device)) for name, m in self.state.items()}

    def restart(self, count: int, rows: Tensor) -> None:
        """So many members begin anew, all with the numbers of the first one, weights `rows` [N, D]."""
        self.configs = [self.configs[0]] * count
        self._numbers.clear()
        self.state = {name: rows.new_zeros(count, width) for name, width in self.widths().items()}

    def shorten(self, count: int) -> None:
        """Only the first `count` members go on."""
        self.configs = self.configs[:count]
        self._numbers.clear()
        self.state = {name: matrix[:count] for name, matrix in self.state.items()}

    def number(self, name: str, like: Tensor) -> Number:
        """A hyperparameter of all members: `lr`, `weight_decay`, `betas.0`, ..."""
        if name not in self._numbers:
            field, _, index = name.partition(".")
            values = [getattr(config, field) for config in self.configs]
            self._numbers[name] = column([v[int(index)] for v in values] if index else values, like)
        return self._numbers[name]

    def rate(self, factors: Sequence[float], like: Tensor) -> Number:
        """Each member's learning rate: its base rate times what its schedule says."""
        return column([config.lr * factor for config, factor in zip(self.configs, factors, strict=True)], like)

    def decay(self, tensor: Tensor, rows: Tensor) -> None:
        """L2: adds weight decay times the weights to the gradient, where weights decay."""
        decay, end = self.number("weight_decay", rows), self.layout.decayed
        if is_zero(decay) or not end:
            return
        tensor[:, :end] += rows[:, :end] * decay

    def shrink(self, rows: Tensor, lr: Number, begin: int = 0) -> None:
        """Decoupled: the weights from `begin` on that decay lose lr times weight decay of themselves."""
        decay, end = self.number("weight_decay", rows), self.layout.decayed
        if is_zero(decay) or begin >= end:
            return
        rows[:, begin:end] *= 1 - lr * decay


class StackedSGD(Stacked):
    """b = momentum b + g;  p -= lr (b, or g + momentum b with Nesterov)."""

    def widths(self) -> dict[str, int]:
        return {"momentum_buffer": self.layout.size} if any(c.momentum for c in self.configs) else {}

    def update(self, rows: Tensor, gradients: Tensor, lr: Number, steps: Sequence[int]) -> None:
        self.decay(gradients, rows)
        direction = gradients
        if self.state:
            momentum, buffer = self.number("momentum", rows), self.state["momentum_buffer"]
            buffer.mul_(momentum).add_(gradients)
            direction = gradients.add_(buffer * momentum) if self.configs[0].nesterov else buffer
        subtract(rows, direction, lr)


class StackedAdam(Stacked):
    """Adam; AdamW where the decay is decoupled. Bias corrections are each member's own."""

    decoupled = False

    def widths(self) -> dict[str, int]:
        return dict.fromkeys(("exp_avg", "exp_avg_sq"), self.layout.size)

    def update(self, rows: Tensor, gradients: Tensor, lr: Number, steps: Sequence[int]) -> None:
        if self.decoupled:
            self.shrink(rows, lr)
        else:
            self.decay(gradients, rows)
        self.move(rows, gradients, lr, steps)

    def move(self, rows: Tensor, gradients: Tensor, lr: Number, steps: Sequence[int]) -> None:
        """The update itself, over the columns that the state has."""
        average, square = self.state["exp_avg"], self.state["exp_avg_sq"]
        beta1, beta2 = self.number("betas.0", rows), self.number("betas.1", rows)
        eps = self.number("eps", rows)
        alike = all(isinstance(n, float) for n in (lr, beta1, beta2, eps)) and len(set(steps)) == 1
        if alike and rows.is_contiguous():
            _adam(rows, gradients, average, square, (lr, beta1, beta2, eps), steps[0])
            return
        first = column([1 - c.betas[0] ** step for c, step in zip(self.configs, steps, strict=True)], rows)
        second = column([sqrt(1 - c.betas[1] ** step) for c, step in zip(self.configs, steps, strict=True)], rows)
        average.lerp_(gradients, 1 - beta1)
        square.mul_(beta2).add_(gradients.square_().mul_(1 - beta2))
        torch.sqrt(square, out=gradients).div_(second).add_(eps)
        rows.sub_(torch.div(average, gradients, out=gradients).mul_(lr / first))


def _adam(
    rows: Tensor, gradients: Tensor, average: Tensor, square: Tensor, numbers: tuple[Any, ...], step: int
) -> None:
    """One fused kernel over the whole matrix, where all members have the same numbers."""
    lr, beta1, beta2, eps = numbers
    count = torch.tensor(float(step - 1), device=rows.device if rows.is_cuda else "cpu")
    adam(
        [rows], [gradients], [average], [square], [], [count], fused=True, amsgrad=False, beta1=beta1, beta2=beta2,
        lr=lr, weight_decay=0.0, eps=eps, maximize=False,
    )  # fmt: skip


class StackedAdamW(StackedAdam):
    """Adam with decoupled decay."""

    decoupled = True


class StackedRMSprop(Stacked):
    """v = alpha v + (1 - alpha) g^2;  b = momentum b + g / (sqrt(v) + eps);  p -= lr b."""

    def widths(self) -> dict[str, int]:
        names = ["square_avg"] + (["momentum_buffer"] if any(c.momentum for c in self.configs) else [])
        return dict.fromkeys(names, self.layout.size)

    def update(self, rows: Tensor, gradients: Tensor, lr: Number, steps: Sequence[int]) -> None:
        self.decay(gradients, rows)
        alpha, square = self.number("alpha", rows), self.state["square_avg"]
        square.mul_(alpha).add_(gradients.square() * (1 - alpha))
        direction = gradients.div_(square.sqrt().add_(self.number("eps", rows)))
        if "momentum_buffer" in self.state:
            direction = self.state["momentum_buffer"].mul_(self.number("momentum", rows)).add_(direction)
        subtract(rows, direction, lr)


class StackedLion(Stacked):
    """The sign of an interpolated momentum, with decoupled decay; see `LionOptimizer`."""

    def widths(self) -> dict[str, int]:
        return {"exp_avg": self.layout.size}

    def update(self, rows: Tensor, gradients: Tensor, lr: Number, steps: Sequence[int]) -> None:
        momentum = self.state["exp_avg"]
        direction = torch.lerp(momentum, gradients, _weight(1 - self.number("betas.0", rows), momentum)).sign_()
        self.shrink(rows, lr)
        subtract(rows, direction, lr)
        momentum.lerp_(gradients, 1 - self.number("betas.1", rows))


class StackedMuon(StackedAdam):
    """Muon on the first columns, each hidden matrix of each member made orthogonal in one batch; AdamW on the rest."""

    def widths(self) -> dict[str, int]:
        hidden, rest = self.layout.hidden, self.layout.size - self.layout.hidden
        return {"momentum_buffer": hidden} | (dict.fromkeys(("exp_avg", "exp_avg_sq"), rest) if rest else {})

    def update(self, rows: Tensor, gradients: Tensor, lr: Number, steps: Sequence[int]) -> None:
        hidden = self.layout.hidden
        self.shrink(rows, lr)
        momentum, buffer = self.number("momentum", rows), self.state["momentum_buffer"]
        buffer.lerp_(gradients[:, :hidden], 1 - momentum)
        directions = buffer
        if self.configs[0].nesterov:
            directions = torch.lerp(gradients[:, :hidden], buffer, _weight(momentum, buffer))
        for place in self.layout.places:
            if place.end > hidden:
                break
            matrices = directions[:, place.start : place.end].reshape(len(rows), place.shape[0], -1)
            moved = orthogonalize(matrices).reshape(len(rows), -1)
            subtract(rows[:, place.start : place.end], moved, lr * step_scale(place.shape))
        if hidden < self.layout.size:
            self.move(rows[:, hidden:], gradients[:, hidden:].contiguous(), lr, steps)


TWINS: dict[type, type[Stacked]] = {
    SGD: StackedSGD, Adam: StackedAdam, AdamW: StackedAdamW, RMSprop: StackedRMSprop, Lion: StackedLion,
    Muon: StackedMuon,
}  # fmt: skip


def stack(configs: Sequence[Any], layout: Layout, rows: Tensor) -> Stacked:
    """The twin for members with these optimizer configs, all of one kind, whose weights are `rows` [N, D].

    Raises ConfigError if the kind has no twin; such members train one by one.
    """
    kind = type(configs[0])
    if kind not in TWINS:
        raise ConfigError(f"optimizer.kind: {configs[0].kind} has no stacked form; add it to core/optim/stacked.py")
    return TWINS[kind](configs, layout, rows)


def column(values: Sequence[float], like: Tensor) -> Number:
    """One number if all are the same, else [N, 1] of the type and device of `like`."""
    if all(value == values[0] for value in values):
        return float(values[0])
    return torch.tensor(values, dtype=torch.float64).to(like.device, like.dtype)[:, None]


def is_zero(number: Number) -> bool:
    """Whether it is 0 for all members."""
    return isinstance(number, float) and number == 0


def subtract(rows: Tensor, direction: Tensor, lr: Number) -> None:
    """Subtracts each member's learning rate times its direction, in place."""
    if isinstance(lr, float):
        rows.sub_(direction, alpha=lr)
    else:
        rows.sub_(direction * lr)


def _weight(number: Number, like: Tensor) -> Any:
    """A number as `torch.lerp` takes it: of tensors, one that broadcasts."""
    return number.expand_as(like) if isinstance(number, Tensor) else number
