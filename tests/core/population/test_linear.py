"""The linear layers of a population are those of its members, forwards and backwards."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, vmap

from core.population.linear import StackedLinears, _Linear

N = 3


def gradients(together: bool, shape: tuple[int, ...], bias: bool, shared: bool) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(N, 4, 5, generator=random, requires_grad=True)
    offset = torch.randn(N, 4, generator=random, requires_grad=True) if bias else None
    inputs = torch.randn(*(() if shared else (N,)), *shape, 5, generator=random, requires_grad=True)
    turn = torch.randn(N, *shape, 4, generator=random)

    def one(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return F.linear(x, w, b)

    if together:
        with StackedLinears():
            found = vmap(one, in_dims=(None if shared else 0, 0, 0 if bias else None))(inputs, weight, offset)
    else:
        each = [(inputs if shared else inputs[i], weight[i], None if offset is None else offset[i]) for i in range(N)]
        found = torch.stack([one(*given) for given in each])
    wanted = [inputs, weight] + ([] if offset is None else [offset])
    return [found, *torch.autograd.grad((found * turn).sum(), wanted)]


@pytest.mark.parametrize("shape", [(), (7,), (2, 6)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_outputs_and_gradients_are_those_of_each_member(shape: tuple[int, ...], bias: bool, shared: bool) -> None:
    pairs = zip(gradients(True, shape, bias, shared), gradients(False, shape, bias, shared), strict=True)
    for stacked, alone in pairs:
        assert stacked.shape == alone.shape
        torch.testing.assert_close(stacked, alone, rtol=1e-5, atol=1e-6)


def test_the_layers_are_done_together(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    plain = _Linear.apply
    monkeypatch.setattr(_Linear, "apply", lambda *arguments: calls.append(len(arguments)) or plain(*arguments))
    gradients(True, (2,), True, False)
    assert calls


def test_a_layer_without_members_is_torch_s_own() -> None:
    with StackedLinears():
        assert torch.equal(F.linear(torch.ones(2, 3), torch.ones(4, 3)), torch.full((2, 4), 3.0))
