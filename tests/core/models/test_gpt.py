"""The GPT family: causality, positions, grouped queries, and the cache against no cache."""

from typing import Any

import pytest
import torch
from torch import Tensor

from core.data.spec import Spec
from core.errors import ConfigError
from core.models import GPT

SPEC = Spec("text", (12,), 17, "token")
SHAPES: dict[str, GPT] = {
    "llama": GPT(width=32, layers=2, heads=4),
    "grouped": GPT(width=32, layers=2, heads=4, kv_heads=2),
    "one-key-head": GPT(width=32, layers=2, heads=4, kv_heads=1, tie=False),
    "gpt2": GPT(width=32, layers=2, heads=4, positions="learned", norm="layernorm", activation="gelu_tanh", bias=True),
    "sinusoidal": GPT(width=32, layers=2, heads=4, positions="sinusoidal", activation="gelu"),
}
every_shape = pytest.mark.parametrize("shape", SHAPES)


def network_of(shape: str) -> Any:
    torch.manual_seed(0)
    network = SHAPES[shape].build(SPEC)
    for parameter in network.parameters():  # large enough weights that a mistake is visible
        parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    return network


def tokens(*shape: int) -> Tensor:
    return torch.randint(17, shape, generator=torch.Generator().manual_seed(2))


@every_shape
def test_a_token_does_not_see_what_follows_it(shape: str) -> None:
    network, x = network_of(shape), tokens(2, 12)
    changed = x.clone()
    changed[:, 6:] = (x[:, 6:] + 1) % 17
    assert torch.allclose(network(x)[:, :6], network(changed)[:, :6], atol=1e-6)
    assert not torch.allclose(network(x)[:, 6:], network(changed)[:, 6:], atol=1e-2)


@every_shape
def test_the_order_of_earlier_tokens_matters(shape: str) -> None:
    network, x = network_of(shape), tokens(2, 12)
    turned = torch.cat([x[:, :10].flip(1), x[:, 10:]], dim=1)
    assert not torch.allclose(network(x)[:, -1], network(turned)[:, -1], atol=1e-3)


@every_shape
@pytest.mark.parametrize("padding", [[0, 0, 0], [0, 5, 2]])
def test_cached_logits_equal_uncached_logits(shape: str, padding: list[int]) -> None:
    network, x = network_of(shape), tokens(3, 12)
    pad = torch.tensor(padding)
    logits, cache = network.start(x[:, :6], pad, 12)
    for t in range(6, 13):
        for row in range(3):
            expected = network(x[row : row + 1, padding[row] : t])[0, -1]
            assert torch.allclose(logits[row], expected, atol=2e-5)
        if t < 12:
            logits = network.step(x[:, t], cache)


@every_shape
def test_padding_is_not_read(shape: str) -> None:
    network, x, pad = network_of(shape), tokens(2, 8), torch.tensor([0, 3])
    other = x.clone()
    other[1, :3] = (x[1, :3] + 5) % 17
    assert torch.equal(network.start(x, pad, 10)[0], network.start(other, pad, 10)[0])


@every_shape
def test_a_cache_can_be_reordered_and_widened(shape: str) -> None:
    network, x = network_of(shape), tokens(3, 12)
    _, cache = network.start(x[:, :6], torch.tensor([0, 5, 2]), 12)
    cache.select(torch.tensor([0, 0, 1, 1, 2, 2]))
    cache.select(torch.tensor([5, 0, 1, 2, 3, 4]))
    logits = network.step(x[:, 6].repeat_interleave(2).roll(1), cache)
    _, cache = network.start(x[:, :6], torch.tensor([0, 5, 2]), 12)
    expected = network.step(x[:, 6], cache)
    assert torch.allclose(logits.roll(-1, 0)[::2], expected, atol=1e-5)
    assert torch.allclose(logits.roll(-1, 0)[1::2], expected, atol=1e-5)


def test_grouped_queries_are_full_attention_with_repeated_key_heads() -> None:
    network = network_of("grouped")
    full: Any = GPT(width=32, layers=2, heads=4).build(SPEC)
    weights = dict(network.state_dict())
    for name in [name for name in weights if name.endswith("qkv.weight")]:
        q, k, v = (part.unflatten(0, (-1, 8)) for part in weights[name].split([32, 16, 16]))
        weights[name] = torch.cat([q, k.repeat_interleave(2, 0), v.repeat_interleave(2, 0)]).flatten(0, 1)
    full.load_state_dict(weights)
    assert torch.allclose(network(tokens(2, 12)), full(tokens(2, 12)), atol=1e-5)


def test_rotary_attention_depends_on_distances_alone() -> None:
    from core.models.layers import rotary_table, rotate

    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def score(i: int, j: int) -> Tensor:
        turned = [rotate(x, rotary_table(torch.tensor([[[n]]]), 8, 100.0)) for x, n in ((q, i), (k, j))]
        return (turned[0] * turned[1]).sum()

    assert torch.allclose(score(3, 1), score(13, 11), atol=1e-5)
    assert not torch.allclose(score(3, 1), score(3, 2), atol=1e-3)


def test_the_default_inner_width_follows_the_activation() -> None:
    assert GPT(width=192).inner == 512
    assert GPT(width=192, activation="gelu").inner == 768
    assert GPT(width=192, hidden=100).inner == 100


def test_a_tied_head_is_the_embedding() -> None:
    tied, untied = network_of("llama"), network_of("one-key-head")
    assert "head.weight" not in tied.state_dict() and "head.weight" in untied.state_dict()
    x = torch.randn(2, 32)
    assert torch.allclose(tied.logits(x), x @ tied.embedding.weight.T, atol=1e-5)


def test_learned_positions_end_where_the_context_ends() -> None:
    with pytest.raises(ConfigError, match="12 positions, got 13"):
        network_of("gpt2")(tokens(1, 13))


def test_branches_start_small() -> None:
    torch.manual_seed(0)
    network: Any = GPT(width=64, layers=8, heads=4).build(SPEC)
    assert network.embedding.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert network.blocks[3].mlp.output.weight.std().item() == pytest.approx(0.02 / 4, rel=0.1)
    assert network.blocks[3].attention.output.weight.std().item() == pytest.approx(0.02 / 4, rel=0.1)
