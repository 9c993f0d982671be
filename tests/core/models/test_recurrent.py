"""Recurrent networks against torch.nn, fused against the plain loop."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.data.spec import Spec
from core.models import Recurrent

TEXT = Spec("text", (9,), 13, "token")
CELLS = pytest.mark.parametrize("cell, reference", [("rnn", nn.RNN), ("lstm", nn.LSTM), ("gru", nn.GRU)])


def language_model(cell: str, layers: int = 2, dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    return Recurrent(cell=cell, layers=layers, hidden=6, width=5, dropout=dropout).build(TEXT)  # type: ignore[arg-type]


def tokens(*shape: int) -> Tensor:
    return torch.randint(13, shape, generator=torch.Generator().manual_seed(2))


@CELLS
def test_parameters_and_outputs_are_those_of_torch(cell: str, reference: type[nn.RNNBase]) -> None:
    network = language_model(cell)
    other: Any = reference(5, 6, 2, batch_first=True)
    other.load_state_dict(network.recurrence.rnn.state_dict())
    x = tokens(3, 9)
    expected = network.head(other(network.embedding(x))[0])
    assert torch.allclose(network(x), expected, atol=1e-6)


@CELLS
def test_the_plain_loop_equals_the_fused_kernel(cell: str, reference: type[nn.RNNBase]) -> None:
    recurrence = language_model(cell).recurrence
    x = torch.randn(3, 9, 5)
    states = tuple(torch.randn_like(s) for s in recurrence.start(3, x))
    fused, fused_states = recurrence._fused(x, states, 0, 2)
    plain, plain_states = recurrence._loop(x, states, 0, 2)
    assert torch.allclose(fused, plain, atol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(fused_states, plain_states, strict=True))


@CELLS
def test_functional_call_uses_the_weights_it_is_given(cell: str, reference: type[nn.RNNBase]) -> None:
    network = language_model(cell)
    weights = {name: p + 0.1 for name, p in network.named_parameters()}
    moved = torch.func.functional_call(network, weights, (tokens(2, 9),))
    network.load_state_dict(weights)
    assert torch.allclose(moved, network(tokens(2, 9)), atol=1e-6)


@CELLS
def test_dropout_between_layers_leaves_the_recurrence_alone(cell: str, reference: type[nn.RNNBase]) -> None:
    network = language_model(cell, layers=3, dropout=0.5)
    recurrence, x = network.recurrence, torch.randn(4, 9, 5)
    states = recurrence.start(4, x)
    calm = list(recurrence.dropouts)
    for dropout in calm:
        dropout.p = 0.0
    layered = recurrence(x, states, torch.arange(4))
    whole = recurrence(x, states)
    assert torch.allclose(layered[0], whole[0], atol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(layered[1], whole[1], strict=True))


@CELLS
def test_reading_left_padded_prompts_step_by_step_equals_reading_them_whole(cell: str, reference: Any) -> None:
    network = language_model(cell)
    x = tokens(3, 9)
    padding = torch.tensor([0, 4, 2])
    logits, memory = network.start(x[:, :6], padding, 9)
    for t in range(6, 10):
        for row in range(3):
            expected = network(x[row : row + 1, padding[row] : t])[0, -1]
            assert torch.allclose(logits[row], expected, atol=1e-6)
        if t < 9:
            logits = network.step(x[:, t], memory)


def test_an_image_is_read_row_by_row() -> None:
    network: Any = Recurrent(cell="gru", hidden=6).build(Spec("image", (2, 4, 3), 5, "class"))
    images = torch.randn(2, 2, 4, 3)
    rows = torch.stack([images[:, :, i].flatten(1) for i in range(4)], dim=1)
    expected = network.head(network.recurrence.rnn(rows)[1][-1])
    assert torch.allclose(network(images), expected, atol=1e-6)
