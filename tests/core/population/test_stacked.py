"""The stacked optimizers make, row by row, the steps of `torch.optim`."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.errors import ConfigError
from core.optim import SGD, Adam, AdamW, Lion, Muon, RMSprop
from core.optim.stacked import Layout, stack

RATES, DECAYS, MOMENTA = (0.1, 0.01, 0.3), (0.0, 0.1, 0.5), (0.5, 0.9, 0.3)
BETAS = ((0.9, 0.99), (0.5, 0.9), (0.0, 0.5))
# For each kind: configs of three members, all numbers of their own
KINDS: dict[str, list[Any]] = {
    "sgd": [SGD(lr=lr, momentum=0.0, weight_decay=d) for lr, d in zip(RATES, DECAYS, strict=True)],
    "momentum": [SGD(lr=lr, momentum=m, weight_decay=0.1) for lr, m in zip(RATES, MOMENTA, strict=True)],
    "nesterov": [SGD(lr=0.1, momentum=m, nesterov=True) for m in MOMENTA],
    "adam": [Adam(lr=lr, betas=b, weight_decay=0.1) for lr, b in zip(RATES, BETAS, strict=True)],
    "adamw": [AdamW(lr=lr, eps=e, weight_decay=d) for lr, e, d in zip(RATES, (1e-8, 1e-3, 0.1), DECAYS, strict=True)],
    "rmsprop": [RMSprop(lr=lr, alpha=a, weight_decay=0.1) for lr, a in zip(RATES, MOMENTA, strict=True)],
    "rmsprop momentum": [RMSprop(lr=0.01, momentum=m, eps=e) for m, e in zip(MOMENTA, (1e-8, 1e-3, 0.1), strict=True)],
    "lion": [Lion(lr=lr, betas=b) for lr, b in zip(RATES, BETAS, strict=True)],
    "muon": [Muon(lr=lr, momentum=m, weight_decay=d) for lr, m, d in zip(RATES, MOMENTA, DECAYS, strict=True)],
}
STEPS, FACTORS = 6, (1.0, 0.5, 0.25, 1.0, 0.1, 0.7)


class Network(nn.Module):
    """Every kind of parameter that an optimizer tells apart; never called."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.hidden = nn.Embedding(5, 8), nn.Linear(8, 6)
        self.wide, self.convolution, self.head = nn.Linear(6, 9), nn.Conv2d(2, 3, 3), nn.Linear(9, 3)


def gradient(network: nn.Module, member: int, step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(100 * member + step)
    return {name: torch.randn(p.shape, generator=generator) for name, p in network.named_parameters()}


def one_by_one(configs: list[Any]) -> list[dict[str, Tensor]]:
    """Final weights of each member by its own torch optimizer."""
    finals = []
    for member, config in enumerate(configs):
        network = Network(member)
        optimizer = config.build(network.named_parameters())
        for step in range(STEPS):
            for name, value in gradient(network, member, step).items():
                network.get_parameter(name).grad = value
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * FACTORS[step]
            optimizer.step()
        finals.append({name: p.detach() for name, p in network.named_parameters()})
    return finals


def stacked(configs: list[Any]) -> list[dict[str, Tensor]]:
    networks = [Network(member) for member in range(len(configs))]
    layout = Layout.of(list(networks[0].named_parameters()), configs[0])
    rows = torch.stack([layout.join(dict(network.named_parameters())) for network in networks])
    optimizer = stack(configs, layout, rows)
    for step in range(STEPS):
        gradients = torch.stack([layout.join(gradient(n, member, step)) for member, n in enumerate(networks)])
        rates = optimizer.rate([FACTORS[step]] * len(configs), rows)
        optimizer.update(rows, gradients, rates, [step + 1] * len(configs))
    return [layout.split(row) for row in rows]


@pytest.mark.parametrize("decay_vectors", [False, True])
@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stacked_optimizer_makes_the_steps_of_its_original(kind: str, alike: bool, decay_vectors: bool) -> None:
    configs = [replace(config, decay_vectors=decay_vectors) for config in KINDS[kind]]
    configs = [configs[1]] * 3 if alike else configs
    for expected, found in zip(one_by_one(configs), stacked(configs), strict=True):
        assert expected.keys() == found.keys()
        for name, tensor in expected.items():
            assert torch.allclose(found[name], tensor, rtol=2e-5, atol=2e-6), name


def test_every_kind_of_optimizer_has_a_stacked_twin() -> None:
    import typing

    from core.optim import OptimizerConfig
    from core.optim.stacked import TWINS

    assert set(typing.get_args(OptimizerConfig)) == set(TWINS)


def test_a_layout_refuses_what_the_optimizer_refuses() -> None:
    network = nn.Linear(3, 3)
    network.requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter to train"):
        Layout.of(list(network.named_parameters()), SGD())
    with pytest.raises(ConfigError, match="muon finds no hidden matrix"):
        Layout.of([("head.bias", nn.Parameter(torch.zeros(3)))], Muon())


def test_an_optimizer_without_a_twin_is_named() -> None:
    class Other(SGD):
        pass

    with pytest.raises(ConfigError, match=r"optimizer\.kind: sgd has no stacked form"):
        stack([Other()], Layout((), 0, 0), torch.zeros(1, 0))
