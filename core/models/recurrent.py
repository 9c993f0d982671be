"""Recurrent networks: RNN, LSTM (with forget gate) and GRU, as language models and as classifiers of sequences.

The parameters are those of `torch.nn.RNN|LSTM|GRU`, name by name. Ordinarily torch's fused kernels run; under
`torch.func` transforms, which have no rule for them, a plain loop over the same cells does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from core.data.spec import Spec
from core.models import checks
from core.models.layers import Dropout

Cell = Literal["rnn", "lstm", "gru"]
States = tuple[Tensor, ...]  # h [L, B, H]; for LSTM also c [L, B, H]


@dataclass(frozen=True)
class Recurrent:
    """hidden: size of the state; width: of a token's embedding, null = hidden.

    Text gives a causal language model. An image is read row by row, a table column by column, and the answer comes from
    the last state. Dropout acts on the embedding, between layers and before the head.
    """

    kind: Literal["recurrent"] = "recurrent"
    cell: Cell = "lstm"
    layers: int = 1
    hidden: int = 128
    width: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        checks.one_of("cell", self.cell, Cell)
        checks.count("layers", self.layers)
        checks.at_least("hidden", self.hidden, 1)
        if self.width is not None:
            checks.at_least("width", self.width, 1)
        checks.fraction("dropout", self.dropout)

    def build(self, spec: Spec) -> "RecurrentLM | RecurrentClassifier":
        """A fresh network. Raises ConfigError for text with anything but token targets."""
        rows = [(kind, target) for kind in ("image", "table") for target in ("class", "real")]
        checks.fits(spec, "recurrent", ("text", "token"), *rows)
        return RecurrentLM(self, spec) if spec.kind == "text" else RecurrentClassifier(self, spec)


class Recurrence(nn.Module):
    """The stack of recurrent layers. `rnn` holds the parameters under torch's names."""

    def __init__(self, config: Recurrent, inputs: int) -> None:
        super().__init__()
        self.cell, self.layers, self.hidden = config.cell, config.layers, config.hidden
        kind = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[config.cell]
        self.rnn = kind(inputs, config.hidden, config.layers, batch_first=True)
        self.dropouts = nn.ModuleList(Dropout(config.dropout) for _ in range(config.layers - 1))
        self.is_noisy = config.dropout > 0 and config.layers > 1

    def forward(self, x: Tensor, states: States, key: Tensor | None = None) -> tuple[Tensor, States]:
        """Inputs x [B, T, F] -> outputs of the last layer [B, T, H] and the states after the last step."""
        run = self._loop if _is_transformed(x, self.rnn.weight_ih_l0) else self._fused
        if not self.is_noisy or key is None:
            return run(x, states, 0, self.layers)
        after = []
        for layer in range(self.layers):
            x = self.dropouts[layer - 1](x, key) if layer else x
            x, state = run(x, tuple(s[layer : layer + 1] for s in states), layer, layer + 1)
            after.append(state)
        return x, tuple(torch.cat(parts) for parts in zip(*after, strict=True))

    def packed(self, x: Tensor, lengths: Tensor, states: States) -> tuple[Tensor, States]:
        """Right-padded x [B, T, F], lengths [B] on the CPU -> last layer's h [B, H] and states, at each row's end."""
        order = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        assert order.sorted_indices is not None and order.unsorted_indices is not None
        states = tuple(s.index_select(1, order.sorted_indices) for s in states)
        kernel, hx = self._kernel(states)
        weights = self._weights(0, self.layers)
        result = kernel(order.data, order.batch_sizes, hx, weights, True, self.layers, 0.0, False, False)
        after = tuple(s.index_select(1, order.unsorted_indices) for s in result[1:])
        return after[0][-1], after

    def start(self, batch: int, like: Tensor) -> States:
        """Zero states for a batch, of the type and device of `like`."""
        return tuple(like.new_zeros(self.layers, batch, self.hidden) for _ in range(2 if self.cell == "lstm" else 1))

    def _kernel(self, states: States) -> tuple[Callable[..., Any], Any]:
        kernels: dict[Cell, Callable[..., Any]] = {"rnn": torch.rnn_tanh, "lstm": torch.lstm, "gru": torch.gru}
        return kernels[self.cell], (list(states) if self.cell == "lstm" else states[0])

    def _weights(self, first: int, last: int) -> list[Tensor]:
        # by name, not `_flat_weights`: functional_call swaps the named ones
        names = ("weight_ih_l", "weight_hh_l", "bias_ih_l", "bias_hh_l")
        return [getattr(self.rnn, f"{name}{layer}") for layer in range(first, last) for name in names]

    def _fused(self, x: Tensor, states: States, first: int, last: int) -> tuple[Tensor, States]:
        kernel, hx = self._kernel(states)
        result = kernel(x, hx, self._weights(first, last), True, last - first, 0.0, self.training, False, True)
        return result[0], tuple(result[1:])

    def _loop(self, x: Tensor, states: States, first: int, last: int) -> tuple[Tensor, States]:
        step, after = CELLS[self.cell], []
        for layer in range(first, last):
            weight_ih, weight_hh, bias_ih, bias_hh = self._weights(layer, layer + 1)
            state, outputs = tuple(s[layer - first] for s in states), []
            for part in F.linear(x, weight_ih, bias_ih).unbind(1):
                state = step(part, F.linear(state[0], weight_hh, bias_hh), state)
                outputs.append(state[0])
            x = torch.stack(outputs, dim=1)
            after.append(state)
        return x, tuple(torch.stack(parts) for parts in zip(*after, strict=True))


def _is_transformed(*tensors: Tensor) -> bool:
    return any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in tensors)


def _rnn(x: Tensor, h: Tensor, state: States) -> States:
    return (torch.tanh(x + h),)


def _lstm(x: Tensor, h: Tensor, state: States) -> States:
    i, f, g, o = (x + h).chunk(4, dim=-1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(x: Tensor, h: Tensor, state: States) -> States:
    r_x, z_x, n_x = x.chunk(3, dim=-1)
    r_h, z_h, n_h = h.chunk(3, dim=-1)
    z = torch.sigmoid(z_x + z_h)
    n = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
    return ((1 - z) * n + z * state[0],)


# One step: (W x + b) [B, G*H], (W h + b) [B, G*H] and the state -> the next state. Gates lie as in torch.
CELLS: dict[Cell, Callable[[Tensor, Tensor, States], States]] = {"rnn": _rnn, "lstm": _lstm, "gru": _gru}


class RecurrentClassifier(nn.Module):
    """inputs [B, C, H, W] (a sequence of H rows) or [B, F] (of F numbers) -> [B, outputs], from the last state."""

    def __init__(self, config: Recurrent, spec: Spec) -> None:
        super().__init__()
        self.recurrence = Recurrence(config, spec.shape[0] * spec.shape[2] if spec.kind == "image" else 1)
        self.dropout = Dropout(config.dropout)
        self.head = nn.Linear(config.hidden, spec.outputs)

    def forward(self, inputs: Tensor, key: Tensor | None = None) -> Tensor:
        x = inputs.transpose(1, 2).flatten(2) if inputs.dim() == 4 else inputs[..., None]
        x, _ = self.recurrence(x, self.recurrence.start(len(x), x), key)
        logits: Tensor = self.head(self.dropout(x[:, -1], key))
        return logits


class Memory:
    """What a recurrent language model carries from token to token while it generates."""

    def __init__(self, states: States) -> None:
        self.states = states

    def select(self, rows: Tensor) -> None:
        """Keeps, repeats or reorders the rows of the batch."""
        self.states = tuple(s.index_select(1, rows) for s in self.states)


class RecurrentLM(nn.Module):
    """tokens [B, T] int64 -> logits [B, T, V] of each next token. `start` and `step` serve `core.generation`."""

    context: int | None = None  # no limit: the state has a fixed size

    def __init__(self, config: Recurrent, spec: Spec) -> None:
        super().__init__()
        width = config.width or config.hidden
        self.vocabulary = spec.outputs
        self.embedding = nn.Embedding(spec.outputs, width)
        self.embedding_dropout = Dropout(config.dropout)
        self.recurrence = Recurrence(config, width)
        self.dropout = Dropout(config.dropout)
        self.head = nn.Linear(config.hidden, spec.outputs)

    def forward(self, inputs: Tensor, key: Tensor | None = None) -> Tensor:
        x = self.embedding_dropout(self.embedding(inputs), key)
        x, _ = self.recurrence(x, self.recurrence.start(len(inputs), x), key)
        logits: Tensor = self.head(self.dropout(x, key))
        return logits

    def start(self, tokens: Tensor, padding: Tensor, slots: int) -> tuple[Tensor, Memory]:
        """Reads prompts [B, T], left-padded by `padding` [B] -> logits [B, V] of the next token, memory."""
        width = tokens.shape[1]
        columns = torch.arange(width, device=tokens.device) + padding[:, None]
        # moved to the left; packing ignores what then stands on the right
        x = self.embedding(tokens.gather(1, columns.clamp(max=width - 1)))
        h, states = self.recurrence.packed(x, (width - padding).cpu(), self.recurrence.start(len(tokens), x))
        return self.head(h), Memory(states)

    def step(self, tokens: Tensor, memory: Memory) -> Tensor:
        """One more token [B] for each row -> logits [B, V]."""
        x, memory.states = self.recurrence(self.embedding(tokens)[:, None], memory.states)
        logits: Tensor = self.head(x[:, 0])
        return logits
